"""The command ``safe`` answers at once, plainly, and with an exit code that scripts can use."""

import errno
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from safe_framework.cli import main
from safe_framework.cli.warnings import folded_warnings
from safe_framework.errors import CheckpointError
from safe_framework.interfaces.registry import REGISTRIES
from safe_framework.utils import catalogue

COMMANDS = (
    "list",
    "show",
    "check",
    "data",
    "cache",
    "run",
    "pick",
    "verify",
    "fetch",
    "new",
    "doctor",
)
RECIPE = """\
[base]
model = "some/model"

[modalities.audio]
encoder = { use = "chime", model = "bell" }
projector = { use = "squeeze" }
fusion = { use = "echo" }
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module in the place of one that loads models."""

    def put(name, **functions):
        module = ModuleType(name)
        module.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def exit_code(*arguments):
    """The code that argparse itself leaves with."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.mark.parametrize("line", ["--help", "--version", "list", "show fusion lora"])
def test_nothing_heavy_is_imported(line):
    """What only names things imports neither torch nor anything that takes as long."""
    code = (
        "import sys\n"
        "from safe_framework.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'safe_framework_plugins.fusion.lora'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code, *line.split()], check=True, capture_output=True)


def test_a_check_imports_nothing_heavy_but_what_opens_sounds():
    """A recipe that is whole is checked without torch; soundfile gives sounds as NumPy's arrays.

    Rich is left out: it draws the bars, which appear where the sounds take more than a second.
    """
    code = (
        "import sys\n"
        "from safe_framework.cli import main\n"
        "code = main(['check', 'quickstart'])\n"
        "assert 'soundfile' in sys.modules\n"
        "sys.exit(code or sorted({'torch', 'transformers', 'peft'} & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_rows_without_sounds_are_checked_with_nothing_heavy(tmp_path):
    """Rows of texts and arrays are read without torch, NumPy and rich."""
    (tmp_path / "a.npy").write_bytes(b"not opened")
    row = {"depth": "a.npy", "question": "what", "answer": "it", "align": "it"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat"}')
    (tmp_path / "recipe.toml").write_text(
        '[base]\nmodel = "HuggingFaceTB/SmolLM2-135M-Instruct"\n[modalities.depth]\n'
        'encoder = { use = "depth", model = "facebook/dinov2-small" }\n'
        'projector = { use = "standard" }\n'
        'fusion = { use = "lora" }\n[data]\ntrain = "rows.jsonl"\ntest = "rows.jsonl"\n'
        'retention = "texts.jsonl"\nretention_test = "texts.jsonl"\n'
    )
    code = (
        "import sys\n"
        "from safe_framework.cli import main\n"
        "code = main(['check', sys.argv[1]])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'PIL'}\n"
        "sys.exit(code or sorted(heavy & set(sys.modules)) or None)\n"
    )
    checked = [sys.executable, "-c", code, str(tmp_path / "recipe.toml")]
    subprocess.run(checked, check=True, capture_output=True)


def test_help_imports_no_metadata_reader():
    """Help needs no look at what is installed, nor any library of ours."""
    code = (
        "import sys\n"
        "from safe_framework.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(sorted({'attrs', 'tomli', 'pluggy'} & set(sys.modules)) or None)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_names_every_command(capsys):
    """Without a command, and with ``--help``, every command is shown."""
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert exit_code("--help") == 0
    assert capsys.readouterr().out == shown
    assert all(f"    {command} " in shown for command in COMMANDS)


def test_the_version_is_the_distributions(capsys):
    """``--version`` says what is installed."""
    from importlib.metadata import version

    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"safe-framework {version('safe-framework')}\n"


def test_an_unknown_command_is_a_usage_error(capsys):
    """A command that does not exist leaves with 2, like any misuse."""
    assert exit_code("lisst") == 2
    assert "lisst" in capsys.readouterr().err


def test_list_shows_everything_there_is(installed, capsys):
    """Plugins of each kind with their origin, recipes, and checkpoints."""
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["chime", "acme-safe", "0.1", "Encodes", "chimes."] in lines
    assert [line[:2] for line in lines if line[0] == "twin"] == [
        ["twin", "acme-safe"],
        ["twin", "rival-safe"],
    ]
    shown = {line[0] for line in lines}
    names = [name for registry in REGISTRIES.values() for name in registry]
    assert shown >= {*names, *catalogue.recipes(), *catalogue.cards(), *catalogue.launches()}


def test_list_shows_a_broken_plugin_without_loading_it(installed, capsys):
    """A plugin that cannot be imported is listed by what its metadata says."""
    assert main(["list"]) == 0
    assert ["broken", "acme-safe", "0.1"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_list_shows_options_below_each_plugin(installed, capsys):
    """The options of each, or that its source does not show them."""
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "Encodes chimes.\n      options: model (required), rate, loud\n" in out
    assert re.search(r"\n  broken +acme-safe 0\.1\n      options: not told by its source\n", out)
    assert "Anchors; takes no options.\n      options: none\n" in out


def test_list_gives_programs_the_same(installed, capsys):
    """``--json`` holds each plugin with its options, and null where they are unknown."""
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plugins = {(plugin["kind"], plugin["name"]): plugin for plugin in found["plugins"]}
    assert plugins["encoder", "broken"]["options"] is None
    assert plugins["encoder", "chime"] == {
        "kind": "encoder",
        "name": "chime",
        "distribution": "acme-safe",
        "version": "0.1",
        "target": "acme_safe:ChimeEncoder",
        "summary": "Encodes chimes.",
        "options": [
            {
                "name": "model",
                "type": "a string",
                "required": True,
                "about": "the bell that was rung.",
            },
            {
                "name": "rate",
                "type": "a whole number",
                "required": False,
                "default": 16000,
                "about": "of the recording.",
            },
            {"name": "loud", "type": "true or false", "required": False, "default": False},
        ],
    }
    assert set(found["recipes"]) == set(catalogue.recipes())
    assert set(found["checkpoints"]) == set(catalogue.cards())


def test_no_plugin_is_imported(installed):
    """Listing and showing load no plugin, not even one whose source shows too little."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from safe_framework.cli import main\n"
        "lines = 'list', 'list --json', 'show encoder chime', 'show encoder broken'\n"
        "assert [main(line.split()) for line in lines] == [0] * 4\n"
        "mine = {'torch', 'safe_framework_plugins', 'acme_safe', 'acme_broken'}\n"
        "sys.exit(sorted(mine & {name.partition('.')[0] for name in sys.modules}) or None)\n"
    )
    command = [sys.executable, "-c", code, str(installed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "its options are not told by its source" in done.stdout


def test_show_lists_a_plugins_options(installed, capsys):
    """A plugin's description, and each option with type, default and meaning."""
    assert main(["show", "encoder", "chime"]) == 0
    assert capsys.readouterr().out == (
        "encoder chime, of acme-safe 0.1 (acme_safe:ChimeEncoder)\n"
        "\n"
        "Encodes chimes.\n"
        "A second paragraph.\n"
        "\n"
        "  option  type            default\n"
        "  model   a string        required\n"
        "      the bell that was rung.\n"
        "  rate    a whole number  16000\n"
        "      of the recording.\n"
        "  loud    true or false   false\n"
    )


def test_show_reports_that_there_are_no_options(installed, capsys):
    """A plugin without options says so."""
    assert main(["show", "retention", "anchor"]) == 0
    assert capsys.readouterr().out.endswith("it takes no options\n")


def test_show_spells_defaults_as_a_recipe_would(installed, capsys):
    """Arrays in brackets, strings in quotes, and nothing for None."""
    assert main(["show", "fusion", "echo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  layers  an array of whole numbers           [0]" in lines
    assert '  where   an array of whole numbers or "all"  "all"' in lines
    assert "  scale   a number" in lines


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("recipe", catalogue.recipes()),
        ("card", catalogue.cards()),
        ("launch", catalogue.launches()),
    ],
)
def test_show_prints_what_the_catalogue_holds(kind, files, capsys):
    """A recipe, card or launch configuration is shown as it is, or by its path."""
    name, path = next(iter(files.items()))
    assert main(["show", kind, name]) == 0
    assert capsys.readouterr().out == path.read_text("utf-8")
    assert main(["show", kind, name, "--path"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_a_plugin_has_no_path_to_show(installed, capsys):
    """``--path`` of a plugin is an error that says what has one."""
    assert main(["show", "encoder", "chime", "--path"]) == 1
    assert capsys.readouterr().err == (
        "only texts have a path\nhint: one of recipe, card, launch\n"
    )


def test_an_error_is_a_message_and_no_traceback(installed, capsys):
    """What is wrong and what to do go to standard error, and the code is 1."""
    assert main(["show", "encoder", "chim"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unknown encoder `chim`\nhint: did you mean `chime`?")


def test_an_error_can_be_traced(installed, monkeypatch):
    """``SAFE_DEBUG=1`` lets it through."""
    monkeypatch.setenv("SAFE_DEBUG", "1")
    with pytest.raises(LookupError):
        main(["show", "encoder", "chim"])


def test_check_says_that_a_recipe_is_valid(installed, tmp_path, capsys):
    """A valid recipe leaves with 0."""
    path = tmp_path / "a.toml"
    path.write_text(RECIPE)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is a valid recipe\n"


@pytest.mark.parametrize(
    ("training", "note"),
    [
        ('speedups = "off"', "its [training] runs without speed-ups: its steps take longer"),
        (
            "max_steps = 20",
            "its rates rise for 100 steps (`warmup_steps` in [training]), so that they never reach "
            "their peak in 20",
        ),
    ],
)
def test_check_says_what_is_worth_knowing(installed, tmp_path, capsys, training, note):
    """A recipe whose training is slow, or ends before its warm-up does, is valid, with a note."""
    path = tmp_path / "a.toml"
    path.write_text(f"{RECIPE}[training]\n{training}\n")
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is a valid recipe\n{note}\n"


def test_check_shows_every_problem(installed, tmp_path, capsys):
    """An invalid recipe leaves with 1, and the problems are on standard error."""
    path = tmp_path / "a.toml"
    path.write_text(RECIPE.replace("chime", "chim").replace("squeeze", "squeze"))
    assert main(["check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}:5:19: unknown encoder `chim`\n")
    assert err.endswith(f"{path} has 2 problems\n")


def test_run_hands_its_options_over(stand_in, capsys):
    """``safe run`` is ``run_recipe``, and prints the folder of the run."""
    calls = []

    def run_recipe(source, **keywords):
        calls.append((source, keywords))
        return Path("runs/1")

    stand_in("safe_framework.runs.run", run_recipe=run_recipe)
    assert main(["run", "quickstart"]) == 0
    assert main(["run", "a.toml", "--output", "there", "--no-resume", "--quiet"]) == 0
    assert calls == [
        ("quickstart", {"output": None, "resume": True, "quiet": False}),
        ("a.toml", {"output": Path("there"), "resume": False, "quiet": True}),
    ]
    assert capsys.readouterr().out == "runs/1\nruns/1\n"


def test_an_interrupted_run_says_how_to_go_on(stand_in, capsys):
    """Control-C leaves with 130 and without a traceback."""

    def run_recipe(source, **keywords):
        raise KeyboardInterrupt

    stand_in("safe_framework.runs.run", run_recipe=run_recipe)
    assert main(["run", "quickstart"]) == 130
    assert capsys.readouterr().err == (
        "\ninterrupted: the same command, without --no-resume, goes on from the last save\n"
    )


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ""),
        (OSError(errno.EROFS, "Read-only file system", "/cache/texts"), " to `/cache/texts`"),
    ],
)
def test_a_full_disk_is_named(stand_in, capsys, error, place):
    """A disk without room is told of in two lines, other errors of files are not hidden."""

    def run_recipe(source, **keywords):
        raise error

    stand_in("safe_framework.runs.run", run_recipe=run_recipe)
    assert main(["run", "quickstart"]) == 1
    assert capsys.readouterr().err == (
        f"nothing can be written{place}: {error.strerror}\n"
        "hint: make room, or name another disk by `SAFE_CACHE` and the run's folder\n"
    )
    error.errno = errno.EIO
    with pytest.raises(OSError, match=error.strerror):
        main(["run", "quickstart"])


def test_fetch_says_where_each_checkpoint_is(stand_in, capsys):
    """Each name is located in turn, what is on the hub in its cache."""
    stand_in(
        "safe_framework.pretrained.location",
        resolve=lambda name: "/" if name == "a" else name,
        revision_of=lambda name: f"commit of {name}",
    )
    stand_in(
        "safe_framework.pretrained.hub",
        download=lambda name, revision: f"/cache/{name}/{revision}",
    )
    stand_in("safe_framework.pretrained.sprite_sets", sprite_folder=None)
    assert main(["fetch", "a", "owner/b"]) == 0
    assert capsys.readouterr().out == "a: /\nowner/b: /cache/owner/b/commit of owner/b\n"


def test_fetch_shows_what_cannot_be_had(stand_in, capsys):
    """A checkpoint that cannot be had is an error like any other."""

    def resolve(name):
        raise CheckpointError(f"no `{name}`", hint="connect")

    stand_in("safe_framework.pretrained.location", resolve=resolve, revision_of=None)
    stand_in("safe_framework.pretrained.hub", download=None)
    stand_in("safe_framework.pretrained.sprite_sets", sprite_folder=None)
    assert main(["fetch", "a"]) == 1
    assert capsys.readouterr().err == "no `a`\nhint: connect\n"


def test_a_reader_that_leaves_early_is_no_error():
    """``safe list | head -1`` ends without a traceback."""
    command = f"{sys.executable} -c 'from safe_framework.cli import main; main()' | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("u", "")


def test_warnings_of_one_kind_are_folded(capsys):
    """A warning is a line; of many from one place the first are shown, and how many there were."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with folded_warnings():
            for number in range(100):
                warnings.warn(f"file {number}\nis odd", stacklevel=1)
            for _ in range(2):
                warnings.warn("once", stacklevel=1)
    assert capsys.readouterr().err.splitlines() == [
        "warning: file 0 is odd",
        "warning: file 1 is odd",
        "warning: file 2 is odd",
        "warning: once",
        "warning: and 97 more, the last: file 99 is odd",
    ]


def test_a_terminal_without_utf8_is_printed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a letter that the stream's encoding lacks is a question mark, not the command's end."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["check", "\u00fcber.toml"]) == 1
    streams[1].flush()
    assert b"`?ber.toml`" in streams[1].buffer.getvalue()  # type: ignore[attr-defined]
