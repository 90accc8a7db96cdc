"""The registry against the bytes of a mirror, and its own promises."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2core import files
from gpt2core.config.data import Data
from gpt2core.config.presets import PRESETS
from gpt2core.errors import UserError
from gpt2core.sources.registry import Asset, File, find, from_url, registry

PUBLIC = [asset for asset in registry() if asset.origin == "public"]


def test_names_are_unique_within_a_kind() -> None:
    keys = [(asset.kind, asset.name) for asset in registry()]
    assert len(set(keys)) == len(keys)


def test_every_kind_of_data_has_an_embedded_source() -> None:
    kinds = [key for key in Data.model_fields if not key.endswith("_column") and key != "continued_corpus"]
    assert [find(kind, "embedded").origin for kind in kinds] == ["generated"] * 3


def test_every_size_that_params_allow_has_an_asset_of_seven_files() -> None:
    for size in PRESETS:
        assert len({file.name for file in find("openai", f"openai-{size}").files}) == 7


@pytest.mark.parametrize("asset", PUBLIC, ids=lambda asset: asset.name)
def test_public_files_come_over_https_and_data_is_pinned(asset: Asset) -> None:
    assert asset.files
    assert asset.license
    for file in asset.files:
        assert file.urls
        assert all(url.startswith("https://") for url in file.urls)
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "") or (asset.kind == "openai" and file.sha256 is None)


@pytest.mark.parametrize(
    "asset", [a for a in PUBLIC if a.kind != "openai" and a.name != "fineweb-edu-10bt"], ids=lambda asset: asset.name
)
def test_sizes_and_hashes_are_those_of_the_mirror(asset: Asset, mirror: Path) -> None:
    for file in asset.files:
        path = mirror / asset.name / file.name
        assert (file.sha256, file.size_bytes) == (files.sha256(path), path.stat().st_size)


def test_two_novels_of_different_authors_are_held_out() -> None:
    novels = find("corpus", "novels")
    assert len(novels.files) == 23
    assert novels.cut == "gutenberg"
    assert set(novels.held_out) == {"1342-0.txt", "1661.txt"} < {file.name for file in novels.files}


def test_fineweb_edus_hashes_are_those_that_its_git_revision_covers() -> None:
    """Git names a file of this repository by the SHA-1 of its LFS pointer, which holds SHA-256 and size."""
    asset = find("corpus", "fineweb-edu-10bt")
    assert len(asset.files) == 14
    assert sum(file.size_bytes for file in asset.files) == 28_518_193_415
    for number, blob in (
        (0, "2df63e03a865d1045dcb477fcdd68635faf226ef"),
        (13, "3f659cc279c926e8baeda616b688b4e704b7fa09"),
    ):
        file = asset.files[number]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size_bytes}\n"
        assert hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest() == blob


def test_a_file_by_its_address_says_whether_it_is_pinned() -> None:
    pinned = from_url(f"https://example.org/x/a.parquet?download=true#sha256={'0f' * 32}")
    assert (pinned.name, pinned.files[0].name, pinned.files[0].sha256) == ("example.org", "a.parquet", "0f" * 32)
    assert pinned.files[0].urls == ("https://example.org/x/a.parquet?download=true",)
    assert "no hash is pinned" not in pinned.description
    assert "no hash is pinned" in from_url("https://example.org/a.parquet").description


def test_an_unknown_name_is_answered_with_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"'shakespear'.*the-verdict, tiny-shakespeare, novels, fineweb-edu-10bt.*data/own/"
    ):
        find("corpus", "shakespear")
    with pytest.raises(UserError, match="no classification source is called 'the-verdict'"):
        find("classification", "the-verdict")


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2f.bashrc.txt", "%2e%2e", "a%00b.txt", "a%5cb.txt", "%2fetc%2fa.txt", "a%0ab.txt", "x" * 201 + ".txt"],
)
def test_a_name_in_an_address_is_one_plain_component(name: str) -> None:
    with pytest.raises(UserError, match="name of a file|must be the address"):
        from_url(f"https://files.example.org/{name}")


@pytest.mark.parametrize("host", ["..", "x" * 300, "a\\b"])
def test_a_host_that_is_a_path_is_refused(host: str) -> None:
    with pytest.raises(UserError):
        from_url(f"https://{host}/shard.txt")


@pytest.mark.parametrize("make", [lambda name: File(name), lambda name: Asset(name, "corpus", "", "")])
@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "C:a", "a\nb", "a\0b", "é" * 101])
def test_no_table_can_name_a_file_elsewhere(make: Callable[[str], object], name: str) -> None:
    with pytest.raises(UserError):
        make(name)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:planted@example.org/a.txt",
        "https://user:pl%40nted@example.org/a.txt",
        "https://planted@example.org/a.txt",
        "https://example.org/a.txt?X-Amz-Signature=planted",
        "https://example.org/a.txt?x=1&api_key=planted#sha256=" + "0" * 64,
        "https://example.org/a.txt?sv=2020&sig=planted",
    ],
)
def test_an_address_with_a_secret_is_refused_without_printing_it(url: str) -> None:
    with pytest.raises(UserError, match="data/own") as error:
        from_url(url)
    assert "planted" not in str(error.value)
    assert "pl%40nted" not in str(error.value)


def test_a_query_without_a_secret_is_allowed() -> None:
    assert from_url("https://example.org/a.txt?download=1&version=2").files[0].name == "a.txt"
