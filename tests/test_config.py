from __future__ import annotations

import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.params import load, load_params, read_values
from gpt2core.params.profiles import render_profile

ROOT = Path(__file__).parent.parent


def edited(tmp_path: Path, *changes: tuple[str, object]) -> Path:
    """The embedded profile with some values changed; a dotted key, and a value or KeyError to delete it."""
    values = read_values(ROOT / "profiles/embedded.yaml")
    for key, value in changes:
        section, _, name = key.rpartition(".")
        target = values[section] if section else values
        if value is KeyError:
            del target[name]
        else:
            target[name] = value
    path = tmp_path / "params.yaml"
    with path.open("w") as file:
        YAML().dump(values, file)
    return path


def test_all_errors_come_in_one_message(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        ("seed", "one"),
        ("data.mirror", "x"),
        ("tokenizer.kind", "words"),
        ("pretrain.lr", "fast"),
        ("pretrain.n_head", 3),
        ("pretrain.context", 512),
        ("finetune_classify.base", "openai/124M"),
        ("finetune_instruct.base", "../elsewhere"),
        ("finetune_instruct.epochs", KeyError),
        ("judge.kind", "openai"),
    )
    with pytest.raises(UserError) as error:
        load_params(path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 10 problems"
    for start in (
        "seed: 'one' must be",
        "data.mirror: unknown key; allowed here: corpus, continued_corpus, ",
        "tokenizer.kind: 'words' is not allowed; allowed: 'bpe', 'gpt2' or 'char'",
        "pretrain.lr: 'fast' must be",
        "pretrain.n_head: 3 heads do not divide the width n_embd 128",
        "pretrain.context: 512 is longer than the model's 256 positions",
        "finetune_classify.base: 'openai/124M' is not made",
        "finetune_instruct.base: '../elsewhere' must name a model directory under models/",
        "finetune_instruct.epochs: missing",
        "judge.kind: 'openai' needs judge.base_url",
    ):
        assert any(line.strip().startswith(start) for line in lines), start


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("pretrain.max_step", "max_steps"),
        ("finetune_classify.batchsize", "batch_size"),
        ("judge.bootstrap", "bootstrap_samples"),
        ("pretran", "pretrain"),
    ],
)
def test_a_misspelled_key_gets_the_closest_one(tmp_path: Path, key: str, closest: str) -> None:
    with pytest.raises(UserError, match=rf"{key}: unknown key; did you mean {closest}\?"):
        load_params(edited(tmp_path, (key, 1)))


@pytest.mark.parametrize(("key", "value"), [("pretrain.lr", True), ("pretrain.max_steps", 1.5), ("seed", -1)])
def test_wrong_types_are_not_bent_into_right_ones(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        load_params(edited(tmp_path, (key, value)))


def test_not_yaml_and_not_sections(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(UserError, match="not YAML"):
        load_params(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="must hold sections"):
        load_params(path)
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "absent.yaml")


def test_six_e_minus_four_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(render_profile(ROOT / "profiles/embedded.yaml").replace("  lr: 0.006 ", "  lr: 6e-4 "))
    assert load_params(path).pretrain.lr == 6e-4


def test_sizes_replace_the_presets() -> None:
    params = load_params(ROOT / "profiles" / "tiny.yaml").pretrain
    assert params.sizes() == PRESETS["tiny"] | {"n_layer": 2, "n_embd": 64}


@pytest.mark.parametrize(("key", "value"), [("n_layer", 1), ("n_head", 2), ("n_embd", 36), ("tie_weights", False)])
def test_an_induction_circuit_needs_room(tmp_path: Path, key: str, value: object) -> None:
    wanted = [("pretrain.init", "induction"), ("pretrain.n_head", 4)]
    load_params(edited(tmp_path, *wanted))
    with pytest.raises(UserError, match="pretrain.init: 'induction' needs 2 blocks, 4 heads of an even size"):
        load_params(edited(tmp_path, *wanted, (f"pretrain.{key}", value)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrain.dtype", "auto"),
        ("finetune_classify.dtype", "auto"),
        ("finetune_instruct.dtype", "auto"),
        ("pretrain.compile", True),
        ("pretrain.compile", "auto"),
        ("finetune_classify.compile", True),
        ("finetune_instruct.compile", "auto"),
        ("pretrain.launcher", "torchrun --standalone --nproc-per-node=2"),
        ("pretrain.launcher", "torchrun --nnodes 2 --nproc-per-node=1"),
        ("pretrain.launcher", "torchrun --standalone --nproc-per-node=gpu"),
    ],
)
def test_portable_numerics_reject_what_depends_on_the_machine(tmp_path: Path, key: str, value: object) -> None:
    load_params(edited(tmp_path, ("numerics", "native"), (key, value)))
    with pytest.raises(UserError) as caught:
        load_params(edited(tmp_path, ("numerics", "portable"), (key, value)))
    _, *problems = str(caught.value).splitlines()
    assert len(problems) == 1
    assert problems[0].strip().startswith(f"{key}: ")
    assert problems[0].endswith("numerics: native")


def test_portable_numerics_allow_one_process_of_torchrun(tmp_path: Path) -> None:
    load_params(edited(tmp_path, ("pretrain.launcher", "torchrun --standalone --nproc-per-node=1")))


def test_an_unknown_mode_of_numerics_names_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="numerics: 'fast' is not allowed; allowed: 'portable' or 'native'"):
        load_params(edited(tmp_path, ("numerics", "fast")))


def test_processes_must_divide_the_windows_of_a_step(tmp_path: Path) -> None:
    def problems(launcher: str, **changes: object) -> str:
        rest = ((f"pretrain.{key}", value) for key, value in changes.items())
        try:
            load_params(edited(tmp_path, ("numerics", "native"), ("pretrain.launcher", launcher), *rest))
        except UserError as error:
            return "\n".join(str(error).splitlines()[1:]).strip()
        return ""

    torchrun = "torchrun --standalone --nproc-per-node"
    assert problems(f"{torchrun}=8") == problems(f"{torchrun} 4", sharding="full") == ""
    assert problems("srun python -m torch.distributed.run --nnodes 2 --nproc_per_node=4") == ""
    assert problems(f"{torchrun}=3") == (
        "pretrain.launcher: 3 processes do not divide the 8 windows of a step (grad_accum_steps 1 * batch_size 8); "
        "allowed: 1, 2, 4, 8"
    )
    assert problems(f"{torchrun}=3", grad_accum_steps=3) == ""
    assert problems(f"{torchrun}=8 --nnodes=2").startswith(
        "pretrain.launcher: 16 processes do not divide the 8 windows"
    )
    assert problems("mpirun").startswith("pretrain.launcher: 'mpirun' must be python or a command of torchrun")
    assert problems("python", sharding="full") == (
        "pretrain.sharding: 'full' needs several processes; set pretrain.launcher to a command of torchrun"
    )


def test_benchmarks_need_their_extra_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ("evaluate.tasks", ["hellaswag", "data/own/my_task.yaml"])
    load_params(edited(tmp_path, ("evaluate.tasks", [])))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    load_params(edited(tmp_path, tasks))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    load_params(edited(tmp_path, ("evaluate.tasks", [])))
    with pytest.raises(UserError, match=r"tasks: lm-eval is not installed; pip install 'gpt2core\[eval\]'"):
        load_params(edited(tmp_path, tasks))


def test_benchmarks_during_pretraining_need_tasks_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    tasks, evaluations = ("evaluate.tasks", ["hellaswag"]), ("pretrain.eval_interval_steps", 20)
    load_params(edited(tmp_path, tasks, evaluations, ("mlflow.benchmark_interval_steps", 40)))
    with pytest.raises(UserError, match="benchmark_interval_steps: 30 is no multiple of .*eval_interval_steps, 20"):
        load_params(edited(tmp_path, tasks, evaluations, ("mlflow.benchmark_interval_steps", 30)))
    with pytest.raises(UserError, match="benchmark_interval_steps: needs evaluate.tasks"):
        load_params(edited(tmp_path, evaluations, ("mlflow.benchmark_interval_steps", 40)))


def test_a_seed_of_the_instructions_counts_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune_instruct.seeds: \[3, 3\] names a seed twice"):
        load_params(edited(tmp_path, ("finetune_instruct.seeds", [3, 3])))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.corpus", "https://user:planted@example.org/a.txt"),
        ("data.corpus", ["embedded", "https://example.org/a.txt?X-Amz-Signature=planted"]),
        ("judge.base_url", "http://user:planted@127.0.0.1:8000/v1"),
        ("judge.base_url", "http://127.0.0.1:8000/v1?api-key=planted"),
        ("judge.model", "http://x/?token=planted"),  # whatever the key is
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_printed(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        load_params(edited(tmp_path, (key, value)))
    assert f"{key}: " in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "line 2.*alias"),
        ("[" * 200_000, "nested"),
        ("{a: " * 100_000, "nested|not YAML"),
        ("a: " + "9" * 5000, "params.yaml"),
        ("seed: 1\nseed: 2\n", "not YAML"),
        ("\xff", "params.yaml"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
        ("#" * 2_000_000, "1,048,576 bytes"),
        ("a: b: c", "not YAML"),
        ("\t- x", "not YAML"),
        ("a: \0", "NUL"),
        ("- " * 60_000, "nested"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_hostile_yaml_is_one_message(tmp_path: Path, content: str, fact: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=fact) as error:
        load_params(tmp_path / "params.yaml")
    assert len(str(error.value)) < 4000


def test_params_that_are_a_folder_or_a_pipe_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=name):
            load_params(tmp_path / name)


def test_only_the_first_of_many_errors_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text() + "".join(f"k{i}: 1\n" for i in range(1000)))
    explained: list[object] = []
    explain = load._explain
    monkeypatch.setattr(load, "_explain", lambda details: explained.append(details) or explain(details))
    with pytest.raises(UserError, match="1000 problems(.|\n)*and 980 more"):
        load_params(path)
    assert len(explained) == 20
