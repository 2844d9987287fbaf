"""The node pack as ComfyUI and its registry read it: metadata, help pages, saved workflows, the picture of one."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_comfy as fake
from benchmark_scripts import ROOT, load

WORKFLOWS = sorted((fake.PACK / "example_workflows").glob("*.json"))
#: What a saved value of each kind of widget is in JSON.
KINDS = {"String": str, "Int": int, "Float": (int, float), "Combo": str}


@pytest.fixture
def schemas(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with fake.loaded(tmp_path) as nodes:
        found = (nodes.Calibrate, nodes.Apply, nodes.ProfileInfo, nodes.Sampler)
        yield {schema.node_id: schema for schema in (node.define_schema() for node in found)}


def test_the_registry_s_file_is_whole():
    facts = tomllib.loads((fake.PACK / "pyproject.toml").read_text())
    assert facts["project"]["name"] == "comfyui-ertacache" and facts["project"]["version"]
    assert facts["project"]["urls"]["Repository"].startswith("https://")
    assert facts["tool"]["comfy"].keys() == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert (fake.PACK / "requirements.txt").read_text().split() == facts["project"]["dependencies"]
    assert (fake.PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


#: What the pack may take of ertacache: nothing that imports diffusers.
OURS = ("core.", "profile.", "errors", "files", "runtime.finite_watch")


def test_comfyui_is_imported_by_the_nodes_alone_and_diffusers_by_nothing():
    for path in fake.PACK.glob("*.py"):
        text = path.read_text()
        imported = re.findall(r"^(?:from|import) (\w[\w.]*)", text, re.MULTILINE)
        assert path.name == "nodes.py" or not any(name.startswith(("comfy", "folder_paths")) for name in imported)
        own = [name.removeprefix("ertacache.") for name in imported if name.startswith("ertacache.")]
        assert all(name.startswith(OURS) for name in own), (path.name, own)
        assert "diffusers" not in imported and text.count("\n") <= 300


def test_every_node_has_a_help_page_that_names_its_inputs(schemas: dict[str, Any]):
    pages = {path.stem: path.read_text() for path in (fake.PACK / "web" / "docs").glob("*.md")}
    assert pages.keys() == schemas.keys()
    for name, schema in schemas.items():
        named = {word for line in pages[name].splitlines() if line.startswith("| ") for word in cells(line)}
        assert {part.id for part in schema.inputs} <= named, name


def cells(row: str) -> list[str]:
    return row.split("|")[1].replace(",", " ").split()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_saved_workflow_fits_the_nodes(schemas: dict[str, Any], path: Path):
    workflow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == len(workflow["links"])
    for number, origin, out, target, slot, kind in workflow["links"]:
        assert number in nodes[origin]["outputs"][out]["links"] and nodes[origin]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == number and nodes[target]["inputs"][slot]["type"] == kind
    own = [node for node in nodes.values() if node["type"] in schemas]
    assert len(own) == 3
    for node in own:
        schema = schemas[node["type"]]
        widgets = [part for part in schema.inputs if part.kind in KINDS]
        assert len(widgets) == len(node["widgets_values"])
        for part, value in zip(widgets, node["widgets_values"], strict=True):
            assert isinstance(value, KINDS[part.kind]), part.id
            assert value in part.given.get("options", [value])
        wanted = {part.id for part in schema.inputs if part.kind not in KINDS}
        assert wanted <= {entry["name"] for entry in node["inputs"]} <= {part.id for part in schema.inputs}
        assert [entry["type"] for entry in node["outputs"]] == [part.kind.upper() for part in schema.outputs]


def test_the_picture_is_of_the_saved_workflow():
    script = load("comfyui_picture")
    drawn = script.draw(json.loads(script.WORKFLOW.read_text()))
    assert script.PICTURE.read_text() == drawn, "run python benchmarks/comfyui_picture.py"
    workflow = json.loads(script.WORKFLOW.read_text())
    assert drawn.count('class="title"') == len(workflow["nodes"]) and drawn.count("<path") == len(workflow["links"])
