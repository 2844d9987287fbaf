"""What a provenance says of its pipeline and of the calls of each step, wrongly: message and changed facts."""

from typing import Any

IDENTITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fields of other types": (r"provenance.model_config is \['a'\]; it must be a dict", {"model_config": ["a"]}),
    "settings of the scheduler not an object": (
        r"provenance.scheduler_config is 3; it must be a dict",
        {"scheduler_config": 3},
    ),
    "hash beside settings": (
        r"provenance.model_config_hash is 'ab' beside provenance.model_config; keep the one without the hash",
        {"model_config_hash": "ab"},
    ),
    "hash beside settings of the scheduler": (
        r"provenance.scheduler_config_hash is 'ab' beside provenance.scheduler_config; keep",
        {"scheduler_config_hash": "ab"},
    ),
    **{
        f"settings of {name}": (
            r"provenance.model_config is .* where provenance.model_class is '.*'; give one denoiser's keys, or",
            {"model_class": model, "model_config": config},
        )
        for name, model, config in (
            ("one denoiser for two", "A, B", {"num_layers": 2}),
            ("one denoiser in a list", "A", {"denoisers": [{}]}),
            ("three denoisers for two", "A, B", {"denoisers": [{}, {}, {}]}),
            ("denoisers not in a list", "A, B", {"denoisers": {"0": {}, "1": {}}}),
            ("denoisers not objects", "A, B", {"denoisers": [{}, 1]}),
            ("denoisers and more", "A, B", {"denoisers": [{}, {}], "num_layers": 2}),
        )
    },
    **{
        f"weights {name}": (
            r"provenance.weights is '.*'; it must be 16 hexadecimal digits, a colon and the base64 of 2 bfloat16",
            {"weights": text},
        )
        for name, text in (
            ("without names", "gD+AP8B/wH8="),
            ("without entries", "00aa11bb22cc33dd:"),
            ("of half a tensor", "00aa11bb22cc33dd:gD8="),
            ("in no base64", "00aa11bb22cc33dd:gD+AP8B/wH8"),
            ("of other letters", "00aa11bb22cc33dd:gD+A\u0663\u0663B/wH8="),
            ("on two lines", "00aa11bb22cc33dd:gD+AP8B/wH8=\n"),
        )
    },
    "weights not text": (r"provenance.weights is \[1\]; it must be a text", {"weights": [1]}),
    "step arguments not numbers": (
        r"provenance.step_arguments is \{'eta': '0'\}; it must be a dict of numbers",
        {"step_arguments": {"eta": "0"}},
    ),
    "step weights of another run": (
        r"provenance.step_weights has 4 entries where provenance.num_inference_steps is 5; give one",
        {"step_weights": [7.0, 7.0, None, 1]},
    ),
    "step weights not numbers": (
        r"provenance.step_weights is \['7', .*\]; it must be a list of numbers or None",
        {"step_weights": ["7"] * 5},
    ),
    **{
        f"calls by step {name}": (
            r"provenance.calls is .*; it must be a list of \[step, \{call name: branches\}\]",
            {"calls": calls},
        )
        for name, calls in (
            ("not a list", {"0": {"cond": 1}}),
            ("not in pairs", [[0]]),
            ("at a step that is no number", [["0", {"cond": 1, "uncond": 1}]]),
            ("not objects", [[0, ["cond", "uncond"]]]),
            ("with branches that are no numbers", [[0, {"cond": 1.5, "uncond": True}]]),
        )
    },
    **{
        f"calls by step {name}": (
            r"provenance.calls names the steps \[.*\] of 5; start at step 0 and go on to later ones",
            {"calls": [[step, {"cond": 1, "uncond": 1}] for step in steps]},
        )
        for name, steps in (("started late", (1, 3)), ("not rising", (0, 3, 3)), ("beyond the run", (0, 5)))
    },
    **{
        f"calls by step {name}": (
            r"provenance.calls has \{.*\} at step 2; name each call with the branches in its batch, 1 or more",
            {"calls": [[0, {"cond": 1, "uncond": 1}], [2, calls]]},
        )
        for name, calls in (("none", {}), ("without a name", {"": 1}), ("without branches", {"cond": 0}))
    },
    "calls by step unlike the contexts": (
        r"provenance.calls has \['cond'\] at step 0 where provenance.contexts is \['cond', 'uncond'\]; name the same",
        {"calls": [[0, {"cond": 1}]]},
    ),
}
