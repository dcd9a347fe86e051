"""Students and teachers: how they start, what a step of them does, and that they score pairs as pairs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers

from twinbert.errors import BundleError, ExportError, UnsupportedError, UsageError
from twinbert.importing import identity
from twinbert.tokenizer import TokenBatch, open_tokenizer_file
from twinbert.training import embedding, initial, losses, readable, recipe, student, synthetic, teacher
from twinbert.training.blocks import Blocks
from twinbert.training.distillation import Distillation, LossWeights
from twinbert.training.embedding import bi_encoder_vectors, map_from
from twinbert.training.initial import StudentConfig
from twinbert.training.pairs import Pairs, judged, part
from twinbert.training.report import Silent
from twinbert.training.schedule import Schedule
from twinbert.training.tables import build
from twinbert.training.teacher import TeacherConfig

DATASET = synthetic.dataset(queries=40)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic BERT."""
    path = tmp_path_factory.mktemp("synthetic") / "checkpoint"
    synthetic.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def scored() -> Pairs:
    """The judged pairs, scored by a teacher that knows the grades."""
    pairs = judged(DATASET)
    return dataclasses.replace(pairs, teacher_P=(4 * pairs.grade_P - 2).astype(np.float32))


def config_of(checkpoint: Path) -> StudentConfig:
    return dataclasses.replace(recipe.load("tiny").students["wordpiece"], checkpoint=str(checkpoint))


def test_a_block_has_the_losses_of_its_pairs_one_by_one(checkpoint: Path, scored: Pairs, tmp_path: Path) -> None:
    """Encoded once in chunks, crossed as a block: every loss is that of the pairs scored each by itself."""
    twin, tokenizer = initial.build(config_of(checkpoint), tmp_path, scored, seed=1)
    one = student.Student(twin, tokenizer)
    tokens = one.tokenizers["query"].encode(scored.queries), one.tokenizers["document"].encode(scored.documents)
    blocks = Blocks(scored, *tokens, documents=24, group=2, together=8, seed=0)
    rows = blocks.batches(0)[0]
    weights = LossWeights(soft_cross_entropy=1, margin_mse=0.5, listwise_kl=0.25, graded_cross_entropy=2)
    with torch.no_grad():
        terms = Distillation(twin.eval(), weights)(**blocks.collate(rows))
    texts = scored.texts()
    teacher_P, grade_P = torch.from_numpy(scored.teacher_P[rows]), torch.from_numpy(scored.grade_P[rows])
    task_P = torch.from_numpy(np.unique(scored.query_P[rows], return_inverse=True)[1])
    total = 0.0
    for kind in ("residual", "cosine"):
        alone_P = torch.cat([torch.from_numpy(one.logits([texts[row]], kind)) for row in rows])
        expected = {
            "soft_cross_entropy": losses.soft_cross_entropy(alone_P, teacher_P),
            "margin_mse": losses.margin_mse(alone_P, teacher_P, task_P),
            "listwise_kl": losses.listwise_kl(alone_P, teacher_P, task_P),
            "graded_cross_entropy": losses.graded_cross_entropy(alone_P, grade_P),
        }
        for name, value in expected.items():
            assert terms[f"{kind} {name}"].item() == pytest.approx(value.item(), rel=1e-4)
            total += getattr(weights, name) * value.item()
    assert terms["loss"].item() == pytest.approx(total, rel=1e-4)


def test_pairs_without_scores_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Losses that need a teacher, and pairs that none has scored: an error before anything is made."""
    with pytest.raises(UsageError, match="its losses need a teacher"):
        student.train(config_of(checkpoint), DATASET, judged(DATASET), output=tmp_path / "s", seed=1)
    assert not (tmp_path / "s").exists()


def test_a_student_learns_from_its_share(
    checkpoint: Path, scored: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pairs of half the queries and none of the others; a larger share has them too, and a run records it."""

    class LearnedError(Exception):
        """Ends a training where it begins."""

    def blocks(pairs: Pairs, *_: object, **__: object) -> Blocks:
        raise LearnedError(pairs.texts())

    monkeypatch.setattr(student, "Blocks", blocks)
    learned: list[set[tuple[str, str]]] = []
    for share in (0.25, 0.5, 1.0):
        output = tmp_path / str(share)
        config = dataclasses.replace(config_of(checkpoint), share=share)
        with pytest.raises(LearnedError) as caught:
            student.train(config, DATASET, scored, output=output, seed=1)
        learned.append(set(caught.value.args[0]))
        recorded = json.loads((output / "distil" / "configuration.json").read_text())["student"]
        assert recorded.get("share", "not said") == (share if share < 1 else "not said")
    quarter, half, whole = learned
    assert quarter < half < whole == set(scored.texts())
    for found, share in ((quarter, 0.25), (half, 0.5)):
        queries = {query for query, _ in found}
        assert found == {(query, document) for query, document in whole if query in queries}
        assert len(queries) / len(scored.queries) == pytest.approx(share, abs=0.2)
    with pytest.raises(UsageError, match="its share of 1e-09 of the queries has no pair"):
        part(scored, 1e-9)


def test_a_projection_starts_from_principal_directions(checkpoint: Path, scored: Pairs, tmp_path: Path) -> None:
    """At full width, scores start as the checkpoint's own cosines would rank, but for what tanh bends."""
    config = dataclasses.replace(config_of(checkpoint), projection=32)
    started, plain = (
        student.Student(*initial.build(one, tmp_path, scored, seed=1))
        for one in (config, dataclasses.replace(config, projection=0))
    )
    texts = scored.texts()
    correlation = np.corrcoef(started.logits(texts, "cosine"), plain.logits(texts, "cosine"))[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize("shared", [True, False])
def test_tri_letter_towers_may_start_from_layers_of_a_checkpoint(
    shared: bool, checkpoint: Path, scored: Pairs, tmp_path: Path
) -> None:
    """Its layers and norms under new embeddings of trigrams, alike in both towers."""
    config = StudentConfig(
        **{"tokenizer": "triletter", "checkpoint": str(checkpoint), "layers": (1,), "shared": shared, "projection": 8},
        query_max_tokens=4,
        document_max_tokens=6,
    )
    initial.check(config, DATASET, scored)
    twin, tokenizer = initial.build(config, tmp_path, scored, seed=1)
    assert (twin.config.document.embedding, twin.config.document.positions) == ("trigrams", 6)
    theirs = transformers.AutoModel.from_pretrained(checkpoint).encoder.layer[1].attention.self.query.weight
    ours = [value for name, value in twin.document.named_parameters() if value.shape == theirs.shape]
    assert any(torch.equal(value, theirs) for value in ours)
    for one, other in zip(twin.query.parameters(), twin.document.parameters(), strict=True):
        assert torch.equal(one, other)
    assert student.Student(twin, tokenizer).score([("bada fimo", "bada")]).shape == (1,)


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_first_stage_minimises_what_is_written_out(
    loss: embedding.SpaceLoss, checkpoint: Path, tmp_path: Path
) -> None:
    """1 − cos, or the mean squared distance, of what the map makes of an embedding to the vector, text by text."""
    config = dataclasses.replace(config_of(checkpoint), projection=8)
    twin, path = initial.build(config, tmp_path, judged(DATASET), seed=1)
    texts = ["bada fimo", "fimo", "bada bada fimo gedi"]
    vectors_BH = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    back = torch.nn.Linear(8, 5)
    learner = embedding.SpaceLearner(twin.document.eval(), back, loss)
    tokenizer = open_tokenizer_file(path, max_tokens=12)
    found = learner(embedding.chunks_on(torch.device("cpu"), tokenizer.encode(texts)), vectors_BH)["loss"]
    embedded = student.Student(twin, path).embed(texts, "document")
    expected = 0.0
    for embedded_D, vector_H in zip(embedded, vectors_BH.numpy(), strict=True):
        mapped_H = back.weight.detach().numpy() @ embedded_D + back.bias.detach().numpy()
        if loss == "cosine":
            expected += 1 - mapped_H @ vector_H / np.linalg.norm(mapped_H) / np.linalg.norm(vector_H)
        else:
            expected += float(np.mean((mapped_H - vector_H) ** 2))
    assert found.item() == pytest.approx(expected / 3, abs=1e-5)


@pytest.mark.parametrize("dimension", [6, 8, 12])
def test_a_first_stage_starts_from_the_way_back(dimension: int) -> None:
    """Embeddings narrower, as wide and wider than the vectors: those that map to them best vary within tanh's range."""
    vectors_NH = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    back_HD = map_from(vectors_NH, dimension, seed=1).weight.detach().numpy()
    embeddings_ND = vectors_NH @ np.linalg.pinv(back_HD).T
    assert np.sqrt(np.square(embeddings_ND).mean()) == pytest.approx(0.4, rel=1e-4)
    if dimension >= 8:
        np.testing.assert_allclose(embeddings_ND @ back_HD.T, vectors_NH, atol=1e-5)


def test_vectors_of_a_bi_encoder_are_made_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a kill has cut short is completed from where an append began, and equals one made in one go."""
    encoded: list[int] = []
    chunks_on = embedding.chunks_on

    def counted(device: torch.device, tokens: TokenBatch) -> dict[str, Any]:
        encoded.append(len(tokens))
        return chunks_on(device, tokens)

    monkeypatch.setattr(embedding, "_ENCODED_AT_ONCE", 8)
    monkeypatch.setattr(embedding, "chunks_on", counted)
    texts = [pair.document for pair in DATASET.train.pairs][:20]

    def vectors() -> teacher.Floats:
        return np.array(bi_encoder_vectors(str(checkpoint), texts, tmp_path, Silent(), precision="float32"))

    whole = vectors()
    (file,) = tmp_path.iterdir()
    with file.open("r+b") as opened:
        opened.truncate(13 * 32 * 4 + 3)
    again = vectors()
    vectors()
    assert whole.shape == (20, 32)
    np.testing.assert_array_equal(again, whole)
    assert encoded == [8, 8, 4, 8, 4]


def test_a_teacher_scores_a_pair_alike_alone_and_among_others(checkpoint: Path) -> None:
    """Sorting by length and padding change nothing, and scores come in the order of the pairs."""
    scorer = teacher.open_checkpoint(checkpoint, max_tokens=24, batch=4)
    pairs = [(pair.query, " ".join([pair.document] * (1 + n % 3))) for n, pair in enumerate(DATASET.train.pairs[:30])]
    alone_N = np.concatenate([scorer.score([pair]) for pair in pairs])
    np.testing.assert_allclose(scorer.score(pairs), alone_N, atol=1e-5)
    assert scorer.score([]).shape == (0,)


def test_a_teacher_may_be_of_another_architecture(checkpoint: Path, tmp_path: Path) -> None:
    """MPNet, whose layers have relative positions and whose input has no segments, learns, is saved and scores."""
    path = tmp_path / "mpnet"
    shutil.copytree(checkpoint, path)
    sizes = transformers.MPNetConfig(
        vocab_size=70,
        pad_token_id=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.MPNetModel(sizes)
    model.config.save_pretrained(path)
    safetensors.torch.save_file(model.state_dict(), path / "model.safetensors")
    config = TeacherConfig(checkpoint=str(path), max_tokens=24, schedule=Schedule(rate=1e-3), pairwise=0.5)
    trained = teacher.train(config, DATASET.train, DATASET.dev, output=tmp_path / "run", seed=1)
    pairs = DATASET.dev.texts()
    loaded = teacher.load(tmp_path / "run" / "model", max_tokens=24)
    np.testing.assert_array_equal(trained.score(pairs), loaded.score(pairs))
    assert trained.digest == loaded.digest
    assert trained.digest != teacher.load(tmp_path / "run" / "model", max_tokens=20).digest
    assert len(teacher.load(tmp_path / "run" / "model", max_tokens=510).score([("bada", "fimo " * 600)])) == 1
    with pytest.raises(UsageError, match="reads 510 tokens, max_tokens is 511"):  # it counts from 2, and has 512
        teacher.open_checkpoint(tmp_path / "run" / "model", max_tokens=511)


def test_a_checkpoint_is_what_it_holds_wherever_it_lies(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on with its checkpoint by another path, and not with another one by the same."""
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    monkeypatch.chdir(tmp_path)
    assert identity("moved") == identity(str(checkpoint)) == identity(str(moved))
    (moved / "1_Pooling").mkdir()
    (moved / "1_Pooling" / "config.json").write_text("{}")
    (moved / "training.log").write_text("what nobody reads")
    pooled = identity("moved")
    assert pooled != identity(str(checkpoint))
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text() + "\n")
    assert identity("moved") not in (pooled, identity(str(checkpoint)))
    assert identity("all-minilm-l6-v2") == "all-minilm-l6-v2"
    (moved / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (moved / name).rename(moved / "0_Transformer" / name)  # as sentence-transformers also has it
    nested = identity("moved")
    (moved / "0_Transformer" / "config.json").write_text("{}")
    assert identity("moved") != nested
    with pytest.raises(UsageError, match="nowhere: is no directory, and no known name"):
        identity("nowhere")


def test_checkpoints_that_cannot_teach_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Too few positions, no trained head, missing files, an architecture that is none: clear errors."""
    with pytest.raises(UsageError, match="reads 64 tokens, max_tokens is 65"):
        teacher.open_checkpoint(checkpoint, max_tokens=65)
    with pytest.raises(UsageError, match="is no trained teacher"):
        teacher.load(checkpoint)
    with pytest.raises(UsageError, match="is no directory"):
        teacher.locate(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"config.json: is missing"):
        teacher.locate(str(tmp_path))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(UnsupportedError, match="makes no cross-encoder of it"):
        teacher.open_checkpoint(tmp_path, max_tokens=24)
    with pytest.raises(UnsupportedError, match="model_type is 'abacus'"):
        initial.check(config_of(tmp_path), DATASET, judged(DATASET))


def _spoiled(checkpoint: Path, folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(checkpoint, folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    spoil(state)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def test_a_teacher_that_would_start_from_chance_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Of the weights only the head's may be missing, none may be of another size; and the tokenizer has to pad."""
    word, query = "embeddings.word_embeddings.weight", "encoder.layer.1.attention.self.query.weight"
    lacking = _spoiled(checkpoint, tmp_path / "lacking", lambda state: state.pop(query))
    with pytest.raises(BundleError, match=rf"model.safetensors: lacks bert.{query}"):
        teacher.open_checkpoint(lacking, max_tokens=24)
    short = _spoiled(checkpoint, tmp_path / "short", lambda state: state.update({word: state[word][:9].clone()}))
    with pytest.raises(BundleError, match=rf"bert.{word} has shape \[9, 32\], the configuration says \[65, 32\]"):
        teacher.open_checkpoint(short, max_tokens=24)
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (damaged / "model.safetensors").write_bytes(b"what is no safetensors")
    with pytest.raises(UnsupportedError, match="makes no cross-encoder of it"):
        teacher.open_checkpoint(damaged, max_tokens=24)
    with pytest.raises(BundleError, match=r"lacks bert\.pooler"):
        teacher.open_checkpoint(checkpoint, max_tokens=24, trained=True)
    unpadded = tmp_path / "unpadded"
    shutil.copytree(checkpoint, unpadded)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (unpadded / name).exists():
            stated = json.loads((unpadded / name).read_text())
            stated.pop("pad_token", None)
            (unpadded / name).write_text(json.dumps(stated))
    with pytest.raises(UnsupportedError, match="its tokenizer has no padding token"):
        teacher.open_checkpoint(unpadded, max_tokens=24)


def test_a_tokenizer_of_more_ids_than_embeddings_is_found_before_training(checkpoint: Path, tmp_path: Path) -> None:
    """The export would refuse it, after hours."""
    path = tmp_path / "wide"
    shutil.copytree(checkpoint, path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens(["more", "words"])
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(ExportError, match="has 67 ids, a tower 65 word embeddings"):
        initial.check(config_of(path), DATASET, judged(DATASET))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layers": [0, 7]}, "layers: 7 is none of .* which has 0 to 1"),
        ({"projection": 64}, "vectors of width 32 have no 64 principal directions"),
        ({"space": {"teacher": "all-minilm-l6"}}, "all-minilm-l6: is no directory, and no known name"),
        ({"space": {"teacher": "CHECKPOINT"}, "projection": 0, "new": {"hidden": 40}}, "space: an embedding of 40"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(changes: dict[str, Any], complaint: str, checkpoint: Path) -> None:
    """Layers that the checkpoint has not, too wide a projection, a first stage without its bi-encoder."""
    base = {"checkpoint": str(checkpoint), "projection": 16}
    told = json.loads(json.dumps(base | changes).replace("CHECKPOINT", str(checkpoint)))
    config = build(StudentConfig, told, "student")
    with pytest.raises(UsageError, match=complaint):
        initial.check(config, DATASET, judged(DATASET))


def test_texts_without_a_letter_are_left_out(tmp_path: Path) -> None:
    """Of what nobody has graded, tri-letters learn only from texts with a letter; WordPiece from all."""
    pairs = dataclasses.replace(judged(DATASET), documents=["½ – ¾", *judged(DATASET).documents[1:]])
    tokenizer = readable.letters_tokenizer("ascii")
    kept = readable.readable_pairs(tokenizer, pairs)
    assert len(kept) == len(pairs) - int((pairs.document_P == 0).sum()) < len(pairs)
    assert "½ – ¾" not in {document for _, document in kept.texts()}
    assert list(readable.readable(tokenizer, ["½", "½ inch", "東京", "7"])) == ["½ inch", "7"]
    assert list(readable.readable(readable.letters_tokenizer("unicode"), ["–", "東京"])) == ["東京"]
    synthetic.save_checkpoint(tmp_path / "checkpoint")
    pieces = open_tokenizer_file(tmp_path / "checkpoint" / "tokenizer.json", max_tokens=8)
    assert list(readable.readable(pieces, ["½"])) == ["½"]
    assert readable.readable_pairs(pieces, pairs) is pairs
