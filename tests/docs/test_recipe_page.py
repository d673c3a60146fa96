"""docs/recipe.md lists exactly the keys of a recipe, with true defaults; examples are valid."""

import re
from pathlib import Path

import attrs
import pytest
import tomli

from safe_framework.config import schema
from safe_framework.config.plugin_options import read_options
from safe_framework.config.read import parse_recipe
from safe_framework.interfaces.registry import fusion_adapters

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipe.md").read_text("utf-8")
TABLES = {
    "`[base]`": schema.BaseSpec,
    "`[base.compose]`": schema.ComposeSpec,
    "`[base.compose.scenes]`": schema.ScenesSpec,
    "`[modalities.NAME]`": schema.ModalitySpec,
    "`[modalities.NAME.augment]`": schema.AugmentSpec,
    "`[modalities.NAME.windows]`": schema.WindowSpec,
    "`[modalities.NAME.transcript]`": schema.TranscriptSpec,
    "`gate`": schema.GateSpec,
    "`[[retention]]`": schema.RetentionSpec,
    "`[data]`": schema.DataSpec,
    "`question`": schema.QuestionSpec,
    "`[[data.mix]]`": schema.MixSpec,
    "`[training]`": schema.TrainingSpec,
    "`[stage_b]`": schema.StageBSpec,
    "`[[curriculum]]`": schema.StageSpec,
    "`relevance`": schema.RelevanceSpec,
    "`until`": schema.UntilSpec,
    "`[monitor]`": schema.MonitorSpec,
    "`on_forget`": schema.ForgetSpec,
    "`[evaluation]`": schema.EvaluationSpec,
}


def rows(heading):
    """The keys and defaults of the first table below a heading."""
    section = PAGE.split(f"# {heading}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:3] for line in table]
    return {key.strip().strip("`"): default.strip() for key, default in cells}


def shown(field):
    """A default as the page writes it."""
    if field.default is attrs.NOTHING:
        return "*required*"
    if field.default is None:
        return ""
    if isinstance(field.default, attrs.Factory):
        return "see below"
    return list(field.default) if isinstance(field.default, tuple) else field.default


def read(text):
    """What the page's text of a default means."""
    return tomli.loads(f"value = {text.strip('`')}")["value"] if text.startswith("`") else text


@pytest.mark.parametrize(("heading", "table"), TABLES.items())
def test_keys_and_defaults(heading, table):
    """A table of the page has the keys of its class, in order, with their defaults."""
    fields = [field for field in attrs.fields(table) if field.metadata.get("written", True)]
    assert list(rows(heading)) == [field.name for field in fields]
    defaults = {key: read(text) for key, text in rows(heading).items()}
    assert defaults == {field.name: shown(field) for field in fields}


def test_every_fusion_adapter_has_its_options():
    """The page's table of adapters has each shipped one, with the options that the others lack."""
    common = {"layers", "heads", "init"}
    shipped = [p.name for p in fusion_adapters.points() if p.dist.name == "safe-framework"]
    options = {name: {o.name for o in read_options(fusion_adapters, name)} for name in shipped}
    assert all(common <= names for names in options.values())
    listed = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows("`fusion`").items()}
    assert listed == {name: names - common for name, names in options.items()}


BASE = '[base]\nmodel = "some"\n'
MODALITY = """
[modalities.audio]
encoder = { use = "whisper", model = "some" }
projector = { use = "standard" }
fusion = { use = "lora", layers = [0] }
"""
EXAMPLES = [
    (page, code)
    for page in ("compose", "data", "monitor", "recipe", "stage_b")
    for code in re.findall(
        r"^```toml\n(.*?)^```$",
        (ROOT / "docs" / f"{page}.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
]


@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_the_examples_have_no_mistake(page, code):
    """What a page shows as a part of a recipe is one, beside a base and a modality."""
    head = "" if "[base]" in code else BASE
    assert parse_recipe(f"{head}{code}\n{'' if '[modalities.' in code else MODALITY}").text


def test_there_are_examples():
    """Each of the pages has one at least."""
    assert {page for page, _ in EXAMPLES} == {"compose", "data", "monitor", "recipe", "stage_b"}


def test_every_class_has_a_table():
    """No class of the schema is left out."""
    classes = {kind for kind in vars(schema).values() if attrs.has(kind)}
    plain = {schema.Recipe, schema.PluginSpec, schema.EncoderSpec}
    assert classes - set(TABLES.values()) == plain
