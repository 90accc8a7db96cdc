"""`gpt2core doctor` in projects that lack something, and its estimates compared with real models and runs."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import yaml

from gpt2core.doctor import machine, needs, project, stores
from gpt2core.params import load_params
from gpt2core.params.profiles import render_profile
from gpt2core.params.update import update_file

ROOT = Path(__file__).parents[2]
EMBEDDED = render_profile(ROOT / "profiles/embedded.yaml")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the default params and nothing made."""
    for name in ("GPT2CORE_TRACKING", "MLFLOW_TRACKING_URI", "GPT2CORE_MIRROR", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params.yaml").write_text(EMBEDDED)
    (tmp_path / "data/own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


# -- An older params.yaml --------------------------------------------------------------------------------------------


def test_a_lock_file_that_a_kill_has_cut_is_a_problem(tmp_path: Path) -> None:
    text = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    (tmp_path / "dvc.lock").write_text(text)
    assert [*project.lock_file(tmp_path)] == []
    size = text.index("size:", len(text) // 2)
    for end in (0, size + len("size:"), text.index("md5:", size) + 2):  # DVC refuses these, too
        (tmp_path / "dvc.lock").write_text(text[:end])
        (finding,) = project.lock_file(tmp_path)
        assert (finding.level, "git checkout dvc.lock" in finding.remedy) == ("problem", True)


def test_an_older_params_file_is_a_problem_with_the_changes_that_it_needs(root: Path) -> None:
    older = yaml.safe_load(EMBEDDED)
    del older["pretrain"]["init"], older["pretrain"]["sharding"], older["tokenizer"]["shuffle"], older["judge"]
    (root / "params.yaml").write_text(yaml.safe_dump(older))
    (finding,) = project.parameters(root)
    assert finding.level == "problem"
    command, *changes = finding.remedy.splitlines()
    assert command == "gpt2core params"  # no clone, which has a Makefile
    assert {change.partition(":")[0] for change in changes} == {
        "added judge", "added pretrain.init", "added pretrain.sharding", "added tokenizer.shuffle",
    }  # fmt: skip
    update_file(root / "params.yaml")
    assert [finding.level for finding in project.parameters(root)] == ["ok"]
    assert load_params(root / "params.yaml") == load_params(ROOT / "profiles/embedded.yaml")


def test_old_names_alone_stop_no_run(root: Path) -> None:
    (root / "params.yaml").write_text(EMBEDDED.replace("  init: random", "  init: gpt2"))
    (finding,) = project.parameters(root)
    assert finding.level == "warning" and "pretrain.init" in finding.remedy


@pytest.mark.parametrize(("values", "level"), [("a: [", "problem"), (None, "problem")])
def test_a_params_file_that_cannot_be_read_is_a_finding(root: Path, values: str | None, level: str) -> None:
    (root / "params.yaml").unlink()
    if values:
        (root / "params.yaml").write_text(values)
    assert [finding.level for finding in project.parameters(root)] == [level]


# -- Files -----------------------------------------------------------------------------------------------------------


def test_files_that_a_queue_would_miss_are_named_until_git_knows_them(root: Path) -> None:
    (finding,) = project.git(root)
    assert (finding.level, finding.what) == ("problem", "this folder is no repository")
    git(root, "init")
    git(root, "add", "params.yaml")
    (root / "data/own/tales.txt").write_text("Once.\n")
    (root / "notes.txt").write_text("of no stage's\n")
    (finding,) = project.git(root)
    assert finding.level == "warning" and finding.what.endswith("1 file(s): data/own/tales.txt")
    subprocess.run(finding.remedy.split(), cwd=root, check=True)
    assert [finding.level for finding in project.git(root)] == ["ok"]


def test_model_directories_of_other_makers_are_told_apart(root: Path) -> None:
    fine = {"model_type": "gpt2", "vocab_size": 300}
    for name, content, others in (
        ("fine", fine, ("model.safetensors", "vocab.json")),
        ("odd", {**fine, "activation_function": "gelu"}, ("model.safetensors", "vocab.json")),
        ("mute", fine, ("model.safetensors",)),
        ("own/pickled", fine, ("pytorch_model.bin", "vocab.json")),
    ):
        folder = root / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(content))
        for other in others:
            (folder / other).touch()
    (root / "models/lightning").mkdir()
    (root / "models/lightning/last.ckpt").touch()
    found = {finding.what: finding for finding in project.model_directories(root)}
    levels = {what.split("/config.json")[0].removeprefix(f"{root}/"): f.level for what, f in found.items()}
    assert levels == {
        "models/lightning holds weights as pickle, which this project does not read": "problem",
        "models/mute has no tokenizer: text cannot be read or written": "warning",
        "models/odd": "problem",
        "models/own/pickled has no model.safetensors": "problem",
        "1 model directories that this version reads": "ok",
    }
    assert all(finding.remedy for finding in found.values() if finding.level != "ok")


# -- The machine -----------------------------------------------------------------------------------------------------


def test_stages_would_run_the_python_of_another_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    assert "problem" not in {finding.level for finding in machine.python(root)}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (finding,) = [finding for finding in machine.python(root) if finding.level == "problem"]
    assert (finding.what, finding.remedy) == (
        f"stages would run {tmp_path}/bin/python", "source .venv/bin/activate"
    )  # fmt: skip


def test_packages_are_held_against_the_lock() -> None:
    from importlib import metadata

    import torch

    assert torch.__version__.startswith(metadata.version("torch").partition("+")[0])
    lock = f"torch=={metadata.version('torch').partition('+')[0]}\nclick==0.1\nno-such-package==1.0  # why\n"
    assert machine.other_versions(lock) == [
        f"click {metadata.version('click')} (lock 0.1)", "no-such-package none (lock 1.0)",
    ]  # fmt: skip


def test_a_compiler_is_missed_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    params = load_params(ROOT / "profiles/embedded.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for wanted, level in ((False, "ok"), ("auto", "warning"), (True, "problem")):
        recipe = params.pretrain.model_copy(update={"compile": wanted})
        (finding,) = machine.compiler(params.model_copy(update={"pretrain": recipe}))
        assert finding.level == level


def test_too_many_threads_and_too_few_are_told_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setenv("GPT2CORE_DEVICE", "cpu")
    for threads, level, remedy in (
        (4, "ok", ""),
        (2, "note", "unset OMP_NUM_THREADS for all 4 (numerics: portable always takes two)"),
        (8, "warning", "export OMP_NUM_THREADS=4"),
    ):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        (finding,) = [finding for finding in machine.torch_and_devices() if finding.area == "threads"]
        assert (finding.level, finding.remedy) == (level, remedy)


def test_an_old_torch_and_a_device_that_is_not_there_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.8.1+cu128")
    monkeypatch.setenv("GPT2CORE_DEVICE", "tpu")
    problems = {f.area: f.remedy for f in machine.torch_and_devices() if f.level == "problem"}
    assert problems == {"torch": "pip install 'torch>=2.9'", "device": "unset GPT2CORE_DEVICE"}


# -- Stores and sources ----------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """As much of a tracking server as a look at the experiment needs."""

    def do_GET(self) -> None:
        experiment = {"experiment_id": "1", "name": "gpt2core", "lifecycle_stage": "active"}
        body = json.dumps({"experiment": experiment} if "get-by-name" in self.path else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_tracking_server_that_is_away_and_one_that_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
        (finding,) = stores.mlflow(root)
        assert (finding.level, finding.what) == ("ok", f"http://***@{address} answers")
    (finding,) = stores.mlflow(root)
    assert finding.level == "warning" and "secret" not in finding.what and "sync-mlflow" in finding.remedy


def test_a_damaged_database_is_a_problem(root: Path) -> None:
    assert [finding.level for finding in stores.mlflow(root)] == ["ok"]
    (root / "mlflow.db").write_bytes(b"no database" * 100)
    (finding,) = stores.mlflow(root)
    assert finding.level == "problem" and "not a sound database" in finding.what


def test_a_folder_without_dvc_is_a_problem_and_one_with_it_is_none(root: Path) -> None:
    (finding,) = stores.dvc(root)
    assert (finding.level, finding.remedy) == ("problem", "dvc init")
    git(root, "init")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    finding, *_ = stores.dvc(root)
    assert finding.level == "ok" and finding.what.endswith("no remote")


def test_a_mirror_is_held_against_what_the_params_need(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(ROOT / "profiles/public-small.yaml")
    for asset in stores.needed(params):
        for file in asset.files:
            path = root / "mirror" / asset.name / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (file.size_bytes or 1))
    monkeypatch.setenv("GPT2CORE_MIRROR", str(root / "mirror"))
    assert [finding.level for finding in stores.sources_of(params)] == ["ok"]
    (root / "mirror/the-verdict/the-verdict.txt").write_text("cut off")
    monkeypatch.setattr(socket, "create_connection", lambda *_: (_ for _ in ()).throw(OSError(101, "unreachable")))
    lacking, unreachable = stores.sources_of(params)
    assert "lacks 1 file(s): the-verdict/the-verdict.txt" in lacking.what
    assert unreachable.level == "warning" and "raw.githubusercontent.com cannot be reached" in unreachable.what
    embedded = load_params(root / "params.yaml")
    other = embedded.data.model_copy(update={"classification": "sms-spam", "corpus": ["embedded", "own/x.txt"]})
    found = list(stores.sources_of(embedded.model_copy(update={"data": other})))
    assert [finding.level for finding in found] == ["problem", "ok"]
    assert "no classification source is called 'sms-spam'; there are: embedded, sms-spam-collection" in found[0].what
    assert [finding.level for finding in stores.sources_of(embedded)] == ["ok"]


# -- Needs -----------------------------------------------------------------------------------------------------------


def test_the_number_of_parameters_is_the_models() -> None:
    from gpt2core.model import GPT, GPTConfig

    sizes = dict(n_layer=3, n_embd=24, n_positions=40, vocab_size=300)
    model = GPT(GPTConfig(n_head=2, **sizes))
    assert needs.parameters(sizes) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_memory_is_estimated_for_every_profile(profile: str) -> None:
    needed = needs.training_bytes(load_params(ROOT / f"profiles/{profile}.yaml"), ROOT)
    assert list(needed) == ["pretrain", "finetune-classify", "finetune-instruct"]
    assert all(n_bytes > 0 for n_bytes in needed.values())


@pytest.mark.parametrize("trainable", ["all", "blocks", "last_two_blocks", "lora"])
def test_the_bytes_of_a_trainings_state_are_the_tensors(trainable: str) -> None:
    from gpt2core.model import GPT, GPTConfig
    from gpt2core.model.quantized import quantize_linears
    from gpt2core.training.trainable import freeze_except

    sizes = dict(n_layer=3, n_embd=256, n_positions=40, vocab_size=300)
    model = GPT(GPTConfig(n_head=2, **sizes))
    freeze_except(model, trainable)
    if trainable == "lora":
        quantize_linears(model.transformer.h, "int8")
    stored = sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})
    trained = sum(3 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    expected = needs.state_bytes(sizes, trainable, "int8" if trainable == "lora" else "float32")
    assert expected == pytest.approx(stored + trained, rel=0.03)  # int8 has scales, and the norms stay float32


def test_the_bytes_of_activations_are_below_what_pytorch_keeps() -> None:
    import torch

    from gpt2core.model import GPT, GPTConfig

    sizes = dict(n_layer=3, n_head=4, n_embd=64, n_positions=32, vocab_size=50)
    model, kept = GPT(GPTConfig(**sizes)), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(8, 32, dtype=torch.long)
        model.loss(ids, ids)
    activations = sum(kept.values()) - sum(p.numel() * p.element_size() for p in model.parameters())
    estimated = needs.activation_bytes(sizes, 8 * 32, checkpointing=False)
    assert activations / 3 < estimated < activations
    assert needs.activation_bytes(sizes, 8 * 32, checkpointing=True) < estimated / 2


def test_what_is_too_large_is_a_problem_with_its_remedy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(ROOT / "profiles/gpt2-355m.yaml")
    monkeypatch.setattr(needs, "free_bytes", lambda: 5e9)
    instruct = list(needs.memory(params, root))[-1]
    assert instruct.level == "problem" and "finetune-instruct takes at least" in instruct.what
    assert "lora" in instruct.remedy
    monkeypatch.setattr(needs, "free_bytes", lambda: 1e12)
    assert {finding.level for finding in needs.memory(params, root)} == {"ok"}


def test_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(ROOT / "profiles/gpt2-355m.yaml")
    (finding,) = needs.disk(params, root)
    assert finding.what.startswith("these params write up to ")
    free = type("Usage", (), {"free": 3e9})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    (finding,) = needs.disk(params, root)
    assert finding.level == "problem" and "dvc gc" in finding.remedy


# -- The command -----------------------------------------------------------------------------------------------------


def test_the_command_speaks_json_and_ends_with_1_for_a_problem(root: Path) -> None:
    (root / "params.yaml").write_text(EMBEDDED.replace("  init: random  ", "  #"))
    done = subprocess.run(
        [sys.executable, "-m", "gpt2core", "doctor", "--json"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["fit"] is False
    problems = [finding for finding in said["findings"] if finding["level"] == "problem"]
    assert all(finding["remedy"] for finding in problems)
    assert any("older version" in finding["what"] and "pretrain.init" in finding["remedy"] for finding in problems)
    assert not any("pretrain.init: missing" in finding["what"] for finding in problems), "told once"


def test_a_site_cache_that_others_can_write_to_is_a_warning_and_its_remedy_works(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    git(root, "init")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    # pytest's own folders are private, so all in them is.
    monkeypatch.setattr(stores, "_is_private", lambda path: path.is_relative_to(root / ".dvc/tmp/site"))
    *_, warning = stores.dvc(root)
    assert (warning.level, "pickles" in warning.what) == ("warning", True)
    dvc = f"{sys.executable} -m dvc"
    subprocess.run(["bash", "-c", warning.remedy.replace("dvc config", f"{dvc} config")], cwd=root, check=True)
    assert (root / ".dvc/tmp/site").stat().st_mode & 0o777 == 0o700
    assert [finding.level for finding in stores.dvc(root)] == ["ok"]


@pytest.mark.parametrize(("mode", "private"), [(0o700, True), (0o755, False), (0o777, False), (0o770, False)])
def test_a_folder_is_private_if_no_one_else_can_enter_it(mode: int, private: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(mode)
        inner = Path(folder) / "repo" / "0123"
        inner.mkdir(parents=True)
        for path in (inner, inner.parent):
            path.chmod(0o777)
        assert stores._is_private(inner) == private


# -- The folder of checkpoints ---------------------------------------------------------------------------------------


def test_the_folder_of_checkpoints_is_written_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2CORE_CHECKPOINTS", raising=False)
    assert [*stores.checkpoints()] == []
    (root / "shared").mkdir()
    monkeypatch.setenv("GPT2CORE_CHECKPOINTS", "shared")
    (finding,) = stores.checkpoints()
    assert (finding.level, finding.what) == ("ok", "checkpoints can be written to shared")
    assert [*(root / "shared").iterdir()] == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing", "is not a folder; create it"),
        ("https://u:PLANTED@127.0.0.1:1/x", "a user name or password"),
        ("nosuchscheme://bucket", "nosuchscheme"),
        ("/proc/sys", "/proc/sys"),
    ],
)
def test_checkpoints_that_cannot_be_written_are_a_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("GPT2CORE_CHECKPOINTS", value)
    (finding,) = stores.checkpoints()
    assert (finding.level, finding.area) == ("problem", "training")
    assert message in finding.what and "PLANTED" not in finding.what + finding.remedy
    assert "unset GPT2CORE_CHECKPOINTS" in finding.remedy


def test_the_name_of_an_untracked_file_is_quoted_for_the_shell(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "add", "params.yaml")
    (root / "data/own/$(touch pwned).txt").write_text("x")
    (finding,) = project.git(root)
    assert "git add -N 'data/own/$(touch pwned).txt'" in finding.remedy


def test_a_password_that_a_library_quotes_is_hidden(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "xyz://user:PLANTED@host")
    (finding,) = stores.mlflow(root)
    assert finding.level == "warning"
    assert "PLANTED" not in finding.what + finding.remedy
