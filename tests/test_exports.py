"""The public door: what it names, and what opening it costs."""

import subprocess
import sys

import pytest

import ertacache


def test_every_public_name_is_there_and_sorted():
    assert list(ertacache.__all__) == sorted(ertacache.__all__)
    for name in ertacache.__all__:
        assert getattr(ertacache, name).__module__.startswith("ertacache.")


def test_the_functions_are_not_shadowed_by_modules_of_their_name():
    code = "import ertacache.calibration.calibrate; assert callable(ertacache.calibrate)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'calibrat'; its names are .*calibrate"):
        ertacache.calibrat  # noqa: B018


def test_import_loads_no_heavy_library():
    code = (
        "import sys, ertacache; heavy = {'torch', 'diffusers', 'transformers', 'torchmetrics'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_run_time_needs_neither_diffusers_nor_transformers():
    code = (
        "import sys, ertacache; ertacache.apply; ertacache.Profile;"
        "heavy = {'diffusers', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
