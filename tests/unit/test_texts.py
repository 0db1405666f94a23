"""Texts as items: hashed n-grams, tokenizers that travel, manifests of texts and of encoded pictures, search."""

from __future__ import annotations

import base64
import csv
import json
import pickle
import shutil
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer as Library
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from raydml.catalogue import TripletMargin
from raydml.cli import app
from raydml.data import Dataset, Preprocessing, open_dataset
from raydml.data.text import Ngrams, text_rule, token_ids
from raydml.errors import CollectionError, DataError, SpecError
from raydml.models import build_model, check_inputs, load_model
from raydml.parallel import Group
from raydml.plan import plan
from raydml.run import located
from raydml.search import Collection
from raydml.spec import JobSpec, ManifestData, ModelSpec, NgramsText, TokenizerText, TransformersSpec
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec
from tests.unit.test_sources import items_equal, picture

NGRAMS = {"kind": "ngrams", "shortest": 2, "longest": 3, "length": 40}
SENTENCES = {
    "greeting": ["good morning", "good evening", "good day to you", "a good morning"],
    "weather": ["rain and snow", "snow again", "much rain", "rain or snow"],
    "food": ["bread and butter", "butter bread", "fresh bread", "some butter"],
    "travel": ["the next train", "train to town", "a slow train", "train and bus"],
}
WORDS = sorted({word for texts in SENTENCES.values() for text in texts for word in text.split()})


def sentences(folder: Path) -> Path:
    """A manifest of four classes: two to train, one to validate, one to test."""
    path = folder / "sentences.csv"
    splits = ("train", "train", "validation", "test")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "split"])
        for (label, texts), split in zip(SENTENCES.items(), splits, strict=True):
            table.writerows([text, label, split] for text in texts)
    return path


def saved_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words as the library saves it: 4 special tokens and every word of the sentences."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    library = Library(WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = Whitespace()
    library.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=library, **special).save_pretrained(folder)
    return folder


def opened(path: Path, **options: Any) -> Dataset:
    return open_dataset(ManifestData(path=str(path), **options), path.parent / "home")


# n-grams


def test_ngrams_are_the_checksums_of_every_run_of_characters() -> None:
    text = " strasse 12 "
    runs = [text[start : start + size] for start in range(len(text)) for size in (2, 3) if start + size <= len(text)]
    full_width = "\uff11\uff12"
    assert Ngrams(2, 3).ids(f"  Stra\u00dfe\t{full_width}\n", 100) == [zlib.crc32(run.encode()) for run in runs]


def test_ids_are_cut_or_padded_to_the_length() -> None:
    whole = Ngrams(2, 3).ids("abc", 100)
    assert len(whole) == 4 + 3  # of " abc "
    assert token_ids(Ngrams(2, 3), "abc", 5) == whole[:5]
    assert token_ids(Ngrams(2, 3), "abc", 9) == [*whole, -1, -1]


@pytest.mark.parametrize(
    ("text", "message"), [(" \n", "the text is empty"), (Path("a.png"), "takes texts, not a Posi")]
)
def test_what_is_no_text_is_refused(text: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing.for_texts(Ngrams(3, 5), 8).decode(text)


def test_an_ngram_bag_is_the_mean_of_its_vectors() -> None:
    document = {"backbone": {"kind": "ngram_bag", "buckets": 16, "width": 6}, "dimension": 4}
    backbone = build_model(TypeAdapter(ModelSpec).validate_python(document), (5,), 0).backbone
    ids = torch.tensor([[3, 19, 2**32 - 1, -1, -1], [5, 5, 6, 7, 8]])
    for row, output in zip(ids.tolist(), backbone(ids), strict=True):
        vectors = [backbone.vectors.weight[1 + number % 16] for number in row if number >= 0]
        torch.testing.assert_close(output, sum(vectors) / len(vectors))


# tokenizers


def test_a_tokenizer_gives_the_ids_of_the_library_and_needs_its_folder_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = saved_tokenizer(tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(folder)
    preprocessing = Preprocessing.for_texts(text_rule(TokenizerText(path=str(folder), length=6)), 6)
    wanted = {text: theirs(text, truncation=True, max_length=6)["input_ids"] for text in ("good day", "a " * 9, "xyz")}
    shutil.rmtree(folder)
    for again in (
        preprocessing,
        Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))),
        pickle.loads(pickle.dumps(preprocessing)),
    ):
        assert again == preprocessing
        for text, ids in wanted.items():
            assert again.decode(text).tolist() == ids + [-1] * (6 - len(ids))
    assert preprocessing.text is not None and preprocessing.text.num_ids == len(WORDS) + 4


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"is no folder: name one with a saved tokenizer"):
        text_rule(TokenizerText(path=str(tmp_path / "none")))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SpecError, match="cannot be read as a tokenizer"):
        text_rule(TokenizerText(path=str(tmp_path)))


# manifests


def test_a_manifest_of_texts_keeps_them_in_the_payload(tmp_path: Path) -> None:
    dataset = opened(sentences(tmp_path), text=NGRAMS)
    assert dataset.input_shape == (40,)
    assert dataset.report.images == {"train": 8, "validation": 4, "test": 4}
    assert dataset.items.ids[4] == "4"
    assert dataset.items.payloads[4] == {"text": "rain and snow", "label": "weather"}
    assert dataset.tensors([4, 5]).dtype == torch.int64
    assert dataset.tensors([4])[0].tolist() == token_ids(Ngrams(2, 3), "rain and snow", 40)
    assert dataset.tensors([]).shape == (0, 40)


def test_raw_texts_are_counts_of_their_tokens(tmp_path: Path) -> None:
    dataset = opened(sentences(tmp_path), text=NGRAMS)
    raw = dataset.raw([0, 4])
    expected = np.zeros((2, 1024), np.float32)
    for row, item in enumerate((0, 4)):
        for number in dataset.read(item).tolist():
            if number >= 0:
                expected[row, number % 1024] += 1
    np.testing.assert_array_equal(raw, expected)


def test_an_empty_text_is_refused_or_left_out(tmp_path: Path) -> None:
    path = sentences(tmp_path)
    path.write_text(path.read_text().replace("snow again", '"   "'))
    with pytest.raises(DataError, match=r"row 5: the text is empty: repair or remove it"):
        opened(path, text=NGRAMS)
    dataset = opened(path, text=NGRAMS, on_bad_item="skip")
    assert dataset.report.skipped == (("row 5", "row 5: the text is empty"),)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, r"holds texts: say how they become tokens, for example `text: \{kind: ngrams\}`"),
        ({"text": NGRAMS, "augment": {"noise": 0.1}}, SpecError, "these items are texts: leave it out"),
        ({"text": NGRAMS, "augment": {"flip": True}}, SpecError, "these items are texts: leave it out"),
    ],
)
def test_options_that_texts_do_not_take_are_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(sentences(tmp_path), **options)


def test_ngrams_whose_shortest_is_the_longer_one_are_no_spec() -> None:
    with pytest.raises(ValidationError, match="shortest = 5 characters is more than longest = 3"):
        NgramsText(shortest=5, longest=3)


def test_encoded_pictures_are_the_same_items_as_their_files(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{number}.png", number) for number in range(6)]
    labels = ["a", "a", "b", "b", "c", "c"]
    rows = [{"id": file.name, "label": label} for file, label in zip(files, labels, strict=True)]
    (tmp_path / "paths.jsonl").write_text("\n".join(json.dumps(row | {"path": row["id"]}) for row in rows))
    encoded = [
        row | {"bytes": base64.b64encode(file.read_bytes()).decode()} for row, file in zip(rows, files, strict=True)
    ]
    (tmp_path / "base64.jsonl").write_text("\n".join(map(json.dumps, encoded)))
    binary = [row | {"bytes": file.read_bytes()} for row, file in zip(rows, files, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(binary), tmp_path / "binary.parquet")
    one = opened(tmp_path / "paths.jsonl", image_size=8)
    for name in ("base64.jsonl", "binary.parquet"):
        other = opened(tmp_path / name, image_size=8)
        assert items_equal(one, other)
        assert one.fingerprint == other.fingerprint


def test_a_damaged_encoded_picture_is_named(tmp_path: Path) -> None:
    file = picture(tmp_path / "0.png", 0)
    good = base64.b64encode(file.read_bytes()).decode()
    rows = [{"label": label, "bytes": good} for label in "aabbc"] + [{"label": "c", "bytes": "?!"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 5: the column bytes is neither binary nor base64"):
        opened(tmp_path / "rows.jsonl")
    assert opened(tmp_path / "rows.jsonl", on_bad_item="skip").report.images["test"] > 0


# which model takes which data


def test_texts_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    texts = Preprocessing.for_texts(Ngrams(3, 5), 8)
    tokens = Preprocessing.for_texts(text_rule(TokenizerText(path=str(saved_tokenizer(tmp_path)), length=8)), 8)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

    def refusal(backbone: dict[str, Any], preprocessing: Preprocessing) -> str:
        spec = TypeAdapter(ModelSpec).validate_python({"backbone": backbone, "dimension": 4})
        with pytest.raises(SpecError) as caught:
            check_inputs(spec, build_model(spec, preprocessing.shape, 0), preprocessing)
        return str(caught.value)

    library = {"kind": "transformers", "architecture": "BertModel", "config": bert}
    assert "ngram_bag for texts" in refusal({"kind": "small_cnn"}, texts)
    assert "mlp does not go with data.text.kind ngrams" in refusal({"kind": "mlp"}, texts)
    assert "transformers does not go with data.text.kind ngrams" in refusal(library, texts)
    assert "ngram_bag does not go with data.text.kind tokenizer" in refusal({"kind": "ngram_bag"}, tokens)
    assert "takes texts here, and this data has vectors" in refusal(
        {"kind": "ngram_bag"}, Preprocessing("vector", (8,))
    )
    assert "takes texts here, and this data has vectors" in refusal(library, Preprocessing("vector", (8,)))
    few = {**library, "config": bert | {"vocab_size": 5}}
    assert f"has {len(WORDS) + 4} tokens, and the model has vectors for 5" in refusal(few, tokens)


# from a manifest to a search


def text_spec(manifest: Path, **changes: Any) -> JobSpec:
    return small_spec(
        manifest,
        data={"kind": "manifest", "path": str(manifest), "text": NGRAMS},
        batch={"classes": 2, "samples": 4, "virtual_workers": 2},
        model={"backbone": {"kind": "ngram_bag", "buckets": 64, "width": 16}, "dimension": 8},
        parallel={"workers": {"min": 1, "max": 2}},
        train={"steps": 5, "evaluate_every": 0},
        **changes,
    )


def test_relative_folders_of_a_spec_start_at_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = JobSpec(
        name="relative",
        data=ManifestData(path="table.csv", text=TokenizerText(path="tokenizer")),
        model=ModelSpec(backbone=TransformersSpec(path="model")),
        loss=TripletMargin(),
    )
    found = located(spec)
    assert isinstance(found.data, ManifestData) and isinstance(found.data.text, TokenizerText)
    assert isinstance(found.model.backbone, TransformersSpec)
    found = (found.data.path, found.data.text.path, found.model.backbone.path)
    assert found == tuple(str(tmp_path / name) for name in ("table.csv", "tokenizer", "model"))


def test_a_plan_counts_a_model_of_texts(tmp_path: Path) -> None:
    manifest = sentences(tmp_path)
    spec = text_spec(manifest)
    made = plan(spec, open_dataset(spec.data, tmp_path))
    assert made.problem is None
    assert made.parameters == (64 + 1) * 16 + 16 * 8


def test_a_model_of_texts_is_trained_exported_and_searched_with_texts(tmp_path: Path) -> None:
    manifest = sentences(tmp_path)
    spec = text_spec(manifest, **{"index": {"collection": "sentences", "split": "all"}})
    (tmp_path / "run").mkdir()
    group = Group(0, 1, 2)
    worker = Worker(Job(spec, tmp_path / "run", tmp_path, None), group, torch.device("cpu"))
    assert worker.run() == "succeeded"
    model = load_model(tmp_path / "run" / "model")
    texts = [text for some in SENTENCES.values() for text in some]
    vectors = model.embed(texts)
    np.testing.assert_allclose(vectors, np.load(tmp_path / "run" / "embeddings" / "vectors.npy"), atol=1e-6)
    collection = Collection.open(tmp_path / "sentences", model=tmp_path / "run" / "model")
    collection.upsert(texts, vectors)
    assert [hits[0].id for hits in collection.search(texts=texts[:3], k=1)] == texts[:3]
    result = CliRunner().invoke(app, ["search", str(tmp_path / "sentences"), "--text", texts[5], "-k", "1", "--json"])
    assert json.loads(result.stdout)["results"][0]["hits"][0]["id"] == texts[5]
    with pytest.raises(CollectionError, match="does not take images: search with texts="):
        collection.search(images=["query.png"])
    with pytest.raises(DataError, match=r"embed takes a list, not the single 'good'"):
        model.embed("good")
