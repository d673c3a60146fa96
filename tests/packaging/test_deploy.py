"""The files for a container say what the project has: no container is built here."""

import json
import re
import shlex

import pytest
import yaml

from safe_framework.cli import _parser

FOLDER = "docs/deploy"


@pytest.fixture(scope="module")
def image(root):
    """Each instruction of the Containerfile with what follows it, its lines joined."""
    text = (root / FOLDER / "Containerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


@pytest.fixture(scope="module")
def compose(root):
    """What compose.yaml says."""
    return yaml.safe_load((root / FOLDER / "compose.yaml").read_text("utf-8"))


def only(image, instruction):
    """What follows the only instruction of this name."""
    (found,) = [rest for name, rest in image if name == instruction]
    return found


def test_what_the_image_installs_is_there(root, metadata, image):
    """Each file is in the repository, each extra in its metadata, pins those of the Makefile."""
    runs = [rest for name, rest in image if name == "RUN"]
    commands = [shlex.split(command) for rest in runs for command in rest.split("&&")]
    installs = [command for command in commands if command[:2] == ["pip", "install"]]
    assert len(installs) == 3
    words = [word for command in installs for word in command]
    (source,) = [word for word in words if word.startswith("./src")]
    extras = re.fullmatch(r"\./src\[(.+)\]", source)[1].split(",")
    assert extras == ["demo", "serve"]
    assert set(extras) <= metadata["optional-dependencies"].keys()
    files = [word.removeprefix("src/") for word in words if word.startswith("src/")]
    assert files == [".ci/constraints.txt"] * 2  # torch has its pin before it has its other index
    assert all((root / file).is_file() for file in files)
    pins = " ".join(word for word in words if "==" in word)
    assert f" {pins}\n" in (root / "Makefile").read_text("utf-8")
    python = re.fullmatch(r"python:(3\.\d+)-slim", only(image, "FROM"))[1]
    assert tuple(map(int, python.split("."))) >= (3, 11)
    assert metadata["requires-python"] == ">=3.11"


def test_the_image_runs_a_command_that_there_is(image, compose):
    """What the image and compose.yaml start is read by `safe`, and listens where others look."""
    entry = json.loads(only(image, "ENTRYPOINT"))
    assert entry[0] == "safe"
    for more in (json.loads(only(image, "CMD")), compose["services"]["server"]["command"]):
        given = _parser().parse_args([*entry[1:], *more])
        assert (str(given.adapter), given.host) == ("/adapter", "0.0.0.0")
    port = str(given.port)
    assert only(image, "EXPOSE") == port
    assert f":{port}/health'" in only(image, "HEALTHCHECK")
    assert compose["services"]["server"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_cache_is_the_server_s_own(image, compose):
    """What the server keeps lies on the volume, which belongs to who runs it."""
    (cache,) = json.loads(only(image, "VOLUME"))
    assert f"SAFE_CACHE={cache} " in only(image, "ENV")
    user = only(image, "USER")
    assert any(f"--owner={user} {cache}" in rest for name, rest in image if name == "RUN")
    mounts = [mount.rsplit(":", 2) for mount in compose["services"]["server"]["volumes"]]
    assert ["cache", cache] in mounts
    assert [mount[-2:] for mount in mounts if "ADAPTER" in mount[0]] == [["/adapter", "ro"]]
    assert "cache" in compose["volumes"]


def test_compose_names_what_is_there(root, compose):
    """What compose.yaml builds from and mounts is in the repository; Prometheus asks the server."""
    folder = root / FOLDER
    build = compose["services"]["server"]["build"]
    assert (folder / build["context"]).resolve() == root.resolve()
    assert (root / build["dockerfile"]).is_file()
    (mount,) = compose["services"]["prometheus"]["volumes"]
    config = folder / mount.split(":")[0]
    assert mount.endswith(":/etc/prometheus/prometheus.yml:ro")
    (job,) = yaml.safe_load(config.read_text("utf-8"))["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == "server:8000"
    assert compose["services"]["prometheus"]["depends_on"] == ["server"]


def test_the_image_is_not_built_from_what_git_ignores(root):
    """Environments, runs and caches are left out of the image, as git leaves them out."""
    left_out = (root / ".dockerignore").read_text("utf-8").splitlines()
    ignored = (root / ".gitignore").read_text("utf-8").split()
    assert len(ignored) > 10
    wanted = {re.sub(r"^\.venv.*", ".venv*", name.strip("/")) for name in ignored}
    wanted = {re.sub(r"^\..*_cache$", ".*_cache", name) for name in wanted}
    assert wanted - {line.removeprefix("**/") for line in left_out} == set()
