"""Sentence encoders in place of words: as ONNX files, and behind an endpoint that may fail in every way."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.adapters import placing
from narrows.adapters.memory import MemoryItemTable, MemoryPolicyLog
from narrows.adapters.placing import with_newest
from narrows.adapters.text_encoders import TEXTS_AT_ONCE, EndpointEncoder, OnnxEncoder, text_encoder
from narrows.errors import BundleError, EncoderMismatch, EncoderUnavailable, SettingsError
from narrows.freshening import freshen
from narrows.retrieval import Floats
from narrows.settings import load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base
from narrows.sources import content, two_tower
from narrows.sources.rows import PlacedVectors, save_arrays
from narrows.text_settings import TextSettings
from narrows.text_vectors import TextEncoder, fit_hashed_words
from tests.encoder_files import DIMENSION, WORDS, word_vectors, write_encoder

APPS = Path(__file__).parents[2] / "apps"
CODE = {word: code for code, word in enumerate(WORDS)}


def unit(vector: Any) -> Any:
    """The vector at length one."""
    return vector / np.linalg.norm(vector)


def mean_of(*words: str) -> Any:
    """What the model of `write_encoder` says of a text of these words."""
    return unit(word_vectors()[[CODE[word] for word in words]].mean(axis=0))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_encoder(tmp_path)


def onnx(files: tuple[Path, Path], **more: Any) -> OnnxEncoder:
    """The encoder as the settings ask for it."""
    made = text_encoder(TextSettings("onnx", *files, **more))
    assert isinstance(made, OnnxEncoder)
    return made


class TestOnnx:
    """The real run time, over a model that can be worked out by hand."""

    def test_a_text_is_the_mean_of_its_tokens(self, files: tuple[Path, Path]) -> None:
        """Padding beside a longer text counts nothing; a word that it never saw is [UNK]."""
        found = onnx(files).encode(["red shoes", "tea", "cheap green tea zzz"])
        wanted = [mean_of("red", "shoes"), mean_of("tea"), mean_of("cheap", "green", "tea", "[UNK]")]
        assert found == pytest.approx(np.array(wanted), abs=1e-6)
        assert found.dtype == np.float32

    def test_a_text_without_words_says_nothing(self, files: tuple[Path, Path]) -> None:
        """Its vector is zeros, and the others have length one."""
        found = onnx(files).encode(["", "tea", "  "])
        assert np.linalg.norm(found, axis=1) == pytest.approx([0.0, 1.0, 0.0])
        assert onnx(files).encode([]).shape == (0, DIMENSION)

    def test_many_texts_come_back_in_their_order(self, files: tuple[Path, Path]) -> None:
        """They are read by parts, the short ones together."""
        encoder = onnx(files)
        texts = [("red " * (at % 7 + 1) + "tea").strip() for at in range(3 * TEXTS_AT_ONCE + 1)]
        one_by_one = np.vstack([encoder.encode([text]) for text in texts])
        assert encoder.encode(texts) == pytest.approx(one_by_one, abs=1e-6)

    def test_the_first_token_or_fewer_tokens_where_the_settings_say_so(
        self, files: tuple[Path, Path]
    ) -> None:
        """`pooling` and `tokens` change the vectors, and with them the fingerprint."""
        first, short = onnx(files, pooling="first"), onnx(files, tokens=2)
        assert first.encode(["red tea"])[0] == pytest.approx(mean_of("red"), abs=1e-6)
        assert short.encode(["red tea cheap"])[0] == pytest.approx(mean_of("red", "tea"), abs=1e-6)
        prints = {one.fingerprint for one in (first, short, onnx(files))}
        assert len(prints) == 3
        assert all(one.startswith("onnx:") for one in prints)
        assert onnx(files).fingerprint in prints

    def test_a_model_that_pools_itself_is_taken_at_its_word(self, tmp_path: Path) -> None:
        """Two dimensions are a vector for each text."""
        encoder = onnx(write_encoder(tmp_path, pooled=True))
        assert encoder.dimension == DIMENSION
        wanted = unit(word_vectors()[[CODE["red"], CODE["tea"]]].max(axis=0))
        assert encoder.encode(["red tea"])[0] == pytest.approx(wanted, abs=1e-6)

    @pytest.mark.parametrize("broken", [0, 1])
    def test_a_file_that_is_no_encoder_is_named(self, files: tuple[Path, Path], broken: int) -> None:
        """Model or tokenizer: the error says what to give."""
        files[broken].write_bytes(b"not that")
        with pytest.raises(BundleError, match=r"model\.onnx with tokenizer\.json is no text encoder"):
            onnx(files)


class Service(ThreadingHTTPServer):
    """An encoder behind HTTP that answers as it is told; `asked` keeps what came."""

    def __init__(self, answer: Callable[[list[str]], tuple[int, bytes]]) -> None:
        self.answer = answer
        self.asked: list[list[str]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/embed"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["texts"]
        self.server.asked.append(texts)
        status, body = self.server.answer(texts)
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the caller gave up
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def vectors(texts: list[str]) -> tuple[int, bytes]:
    """The text's length and one, of which the caller makes length one."""
    return 200, json.dumps({"vectors": [[len(text), 1.0, 0.0] for text in texts]}).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(vectors) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def asking(url: str, **more: Any) -> EndpointEncoder:
    """The encoder as the settings ask for it."""
    given = {"model_version": "m1", "dimension": 3, "timeout_s": 1.0, **more}
    made = text_encoder(TextSettings("endpoint", url=url, **given))
    assert isinstance(made, EndpointEncoder)
    return made


class TestEndpoint:
    """A real HTTP server, in all its moods."""

    def test_each_text_gets_its_vector(self, service: Service) -> None:
        """In order, at length one, some at a time; a text of spaces is not sent."""
        texts = [f"{'x' * (at % 9 + 1)}" for at in range(TEXTS_AT_ONCE + 3)]
        found = asking(service.url).encode([*texts, " "])
        wanted = [unit([len(text), 1.0, 0.0]) for text in texts]
        assert found == pytest.approx(np.array([*wanted, np.zeros(3)]), abs=1e-6)
        assert sorted(map(len, service.asked)) == [3, TEXTS_AT_ONCE]

    def test_its_fingerprint_is_what_the_settings_call_it(self) -> None:
        """Asking it nothing: an address may move, the model behind it may not."""
        assert asking("http://a").fingerprint == asking("http://b").fingerprint == "endpoint:m1"
        assert asking("http://a", model_version="m2").fingerprint == "endpoint:m2"

    def test_one_that_takes_too_long_is_given_up(self, service: Service) -> None:
        """After the time of the settings, and not much later."""
        service.answer = lambda texts: (time.sleep(1.0), vectors(texts))[1]
        begun = time.monotonic()
        with pytest.raises(EncoderUnavailable, match=r"did not answer in 0\.1 s"):
            asking(service.url, timeout_s=0.1).encode(["red"])
        assert time.monotonic() - begun < 0.9

    @pytest.mark.parametrize(
        ("status", "body", "said"),
        [
            (500, b"{}", "answered 500"),
            (404, b"nothing here", "answered 404"),
            (200, b'{"vectors": [[1, 0]]}', r"shape \(1, 2\) for 1 texts.*dimension = 3"),
            (200, b'{"vectors": [[1, 0, 0], [1, 0, 0]]}', r"shape \(2, 3\) for 1 texts"),
            (200, b'{"vectors": [[1, 0], [1]]}', "it has to answer"),
            (200, b'{"vectors": [["a", "b", "c"]]}', "it has to answer"),
            (200, b'{"embeddings": []}', "it has to answer"),
            (200, b"[]", "it has to answer"),
            (200, b"<html>", "'<html>'"),
            (200, b'{"vectors": [[NaN, 0, 0]]}', "nan or infinity"),
        ],
    )
    def test_every_wrong_answer_is_told(self, service: Service, status: int, body: bytes, said: str) -> None:
        """As one kind of error, which says what came and what has to come."""
        service.answer = lambda _: (status, body)
        with pytest.raises(EncoderUnavailable, match=said):
            asking(service.url).encode(["red"])

    def test_one_that_is_not_there_is_told(self, service: Service) -> None:
        """A refused connection is the same kind of error."""
        url = service.url.replace("/embed", "")
        port = int(url.rsplit(":", 1)[1])
        free = url.replace(str(port), "1")
        with pytest.raises(EncoderUnavailable, match="did not answer"):
            asking(free).encode(["red"])


def test_words_need_no_encoder() -> None:
    """The default lies in each model's file."""
    assert text_encoder(TextSettings()) is None


class TestSettings:
    """`[text_vectors]` of an app.toml."""

    @pytest.fixture
    def app(self, tmp_path: Path) -> Path:
        """The folder of an app, with the files of an encoder."""
        folder = tmp_path / "media"
        shutil.copytree(APPS / "media", folder)
        write_encoder(folder / "encoder")
        return folder

    def told(self, app: Path, *lines: str) -> list[str]:
        """What is wrong with these lines of the table."""
        text = (APPS / "media" / "app.toml").read_text() + "\n[text_vectors]\n" + "\n".join(lines)
        (app / "app.toml").write_text(text)
        try:
            self.settings = load_app(app).text_vectors
        except SettingsError as error:
            return [str(problem).removeprefix("app.toml: text_vectors.") for problem in error.problems]
        return []

    def test_words_are_the_default(self) -> None:
        """An app that says nothing has them."""
        assert load_app(APPS / "media").text_vectors == TextSettings()

    def test_files_beside_the_app_are_an_encoder(self, app: Path) -> None:
        """They are named from the app's folder, and opened."""
        names = 'encoder = "onnx"', 'model = "encoder/model.onnx"', 'tokenizer = "encoder/tokenizer.json"'
        assert self.told(app, *names, "tokens = 7") == []
        assert (self.settings.pooling, self.settings.tokens) == ("mean", 7)
        made = text_encoder(self.settings)
        assert made is not None
        assert made.encode(["tea"])[0] == pytest.approx(mean_of("tea"), abs=1e-6)

    def test_an_endpoint_by_address_or_by_name(self, app: Path) -> None:
        """Its version and size are said, since it is not asked when settings are read."""
        rest = 'model_version = "m1"', "dimension = 384"
        assert self.told(app, 'encoder = "endpoint"', 'url = "https://e/x"', 'timeout = "500ms"', *rest) == []
        assert (self.settings.timeout_s, self.settings.dimension) == (0.5, 384)
        assert self.told(app, 'encoder = "endpoint"', 'sagemaker = "minilm"', *rest) == []
        assert self.settings.sagemaker == "minilm"

    def test_all_mistakes_are_told_at_once(self, app: Path) -> None:
        """With the key, the value and what to write."""
        wrong = 'encoder = "onnx"', 'model = "none.onnx"', 'tokenizer = "../../x"', "tokens = 0", 'url = "x"'
        assert self.told(app, *wrong) == [
            "model = 'none.onnx': there is no such file in media/; put it there",
            "tokenizer = '../../x': keep the file in media/, beside app.toml, so that it is deployed",
            "tokens = 0: write a whole number of 1 to 8192",
            "url = 'x': unknown key; choose one of encoder, model, pooling, tokenizer, tokens",
        ]
        assert self.told(app, 'encoder = "endpoint"', 'url = "ftp://e"', 'sagemaker = "e"') == [
            "url = 'ftp://e': give either url or sagemaker, the name of a SageMaker endpoint",
            "url = 'ftp://e': write an address that starts with https:// or http://",
            "model_version = None: it is missing; write it",
            "dimension = None: it is missing; write it",
        ]
        assert self.told(app, 'encoder = "onyx"') == [
            "encoder = 'onyx': did you mean 'onnx'? choose one of endpoint, onnx, words"
        ]
        assert self.told(app, "dimension = 3") == ["dimension = 3: unknown key; choose one of encoder"]


class TestModels:
    """A model keeps which encoder made its vectors, and takes no other."""

    @pytest.fixture
    def trained(self, files: tuple[Path, Path], tmp_path: Path) -> Path:
        """Two towers that were trained with the ONNX encoder, as a file."""
        weights = {"item.content": np.eye(DIMENSION, 4, dtype=np.float32)}
        weights["user.places"] = np.ones((2, 4), np.float32)
        none = np.zeros((0, 4), np.float32)
        params = two_tower.Params(dimension=4, history=2, hidden=2)
        names = np.asarray([], "<U1")
        model = two_tower.TwoTower(
            names, none, none.astype(np.float16), np.zeros(0), names, none, weights, onnx(files), params
        )
        model.save(tmp_path / two_tower.FILE)
        return tmp_path / two_tower.FILE

    def test_the_encoder_of_the_training_reads_new_items(
        self, trained: Path, files: tuple[Path, Path]
    ) -> None:
        """Found again by its fingerprint, it gives what training would have given."""
        network = two_tower.load(trained).reading(onnx(files)).network
        unknown = np.asarray([-1], np.int32)
        assert network.embed(unknown, ["red tea"])[0] == pytest.approx(mean_of("red", "tea")[:4], abs=1e-6)

    @pytest.mark.parametrize("other", ["none", "tokens", "endpoint"])
    def test_no_other_encoder_may_read_them(
        self, trained: Path, files: tuple[Path, Path], other: str
    ) -> None:
        """Refused at the first text, with both ways out; what the model knows of its items stays in use."""
        others: dict[str, TextEncoder | None] = {
            "none": None,
            "tokens": onnx(files, tokens=9),
            "endpoint": asking("http://127.0.0.1:1", dimension=DIMENSION),
        }
        network = two_tower.load(trained).reading(others[other]).network
        with pytest.raises(EncoderMismatch, match=r"'onnx:\w+'.*set it back, or train again"):
            network.embed(np.asarray([-1], np.int32), ["red tea"])

    def test_a_model_that_carries_its_words_goes_on_with_them(
        self, tmp_path: Path, files: tuple[Path, Path]
    ) -> None:
        """After the app was told to use another encoder, until the next training."""
        words = fit_hashed_words(["red shoes", "green tea"] * 3, np.random.default_rng(0), dimension=2)
        ids, said = np.asarray(["a"]), words.encode(["red"])
        content.Content(ids, said, np.zeros(1), words, content.Params()).save(tmp_path / content.FILE)
        kept = content.load(tmp_path / content.FILE).reading(onnx(files))
        assert kept.encoder.encode(["red"]) == pytest.approx(said)

    def test_a_file_without_any_encoder_is_told(self, tmp_path: Path) -> None:
        """An older or a foreign file."""
        arrays = {"item_ids": np.asarray(["a"]), "vectors": np.ones((1, 2)), "marks": np.zeros(1)}
        save_arrays(tmp_path / "x.npz", arrays, content.Params())
        with pytest.raises(BundleError, match=r"x\.npz does not say which text encoder"):
            content.load(tmp_path / "x.npz")


def item_table() -> MemoryItemTable:
    """An empty one."""
    return MemoryItemTable(MemoryPolicyLog())


class Moody:
    """A network's encoder that is there or not."""

    version = "v1"

    def __init__(self) -> None:
        self.error: Exception | None = None

    def embed(self, _: Sequence[str], texts: Sequence[str]) -> Floats:
        if self.error:
            raise self.error
        return np.asarray([[0.0, 0.0] if "xyzzy" in text else [1.0, 1.0] for text in texts], np.float32)


class TestItemsWithoutVectors:
    """An item does not wait for its vector."""

    def send(self, table: MemoryItemTable, encoder: Moody, *items: Any) -> list[dict[str, Any]]:
        """The verdicts on these."""
        verdicts = freshen(
            items, app=load_app(APPS / "media"), table=table, published=lambda: None, encoder=encoder, now=9.0
        )
        return [one.shown() for one in verdicts]

    def test_it_is_stored_and_counted_while_the_encoder_is_down(self) -> None:
        """The verdict names the error; what has no text was never to have a vector."""
        table, encoder = item_table(), Moody()
        encoder.error = EncoderUnavailable("the text encoder at http://e answered 500")
        told, silent = self.send(table, encoder, {"item_id": "a", "title": "Red tea"}, {"item_id": "b"})
        assert told == {"index": 0, "item_id": "a", "status": "accepted", "no_vector": "EncoderUnavailable"}
        assert silent == {"index": 1, "item_id": "b", "status": "accepted"}
        assert {one.vector for one in table.read(["a", "b"]).values()} == {b""}

    def test_the_wrong_encoder_is_named(self) -> None:
        """It is no outage, and is not told as one."""
        encoder = Moody()
        encoder.error = EncoderMismatch("another")
        (told,) = self.send(item_table(), encoder, {"item_id": "a", "title": "Red tea"})
        assert told["no_vector"] == "EncoderMismatch"

    def test_words_that_the_model_has_never_read_are_told(self) -> None:
        """Of the item that has no other; the rest of the batch has its vectors."""
        table = item_table()
        sent = {"item_id": "a", "title": "xyzzy"}, {"item_id": "b", "title": "Red tea"}
        told, read = self.send(table, Moody(), *sent)
        assert told == {"index": 0, "item_id": "a", "status": "accepted", "no_vector": "UnknownWords"}
        assert "no_vector" not in read
        assert [len(table.read([one])[one].vector) for one in "ab"] == [0, 8]

    def test_the_same_text_keeps_its_vector_while_the_encoder_is_down(self) -> None:
        """Another price of the item changes nothing of it; another text leaves it without one."""
        table, encoder = item_table(), Moody()
        self.send(table, encoder, {"item_id": "a", "title": "Red tea"}, {"item_id": "b", "title": "Shoes"})
        before = table.read(["a"])["a"]
        encoder.error = EncoderUnavailable("down")
        changed = {"item_id": "a", "title": "Red  tea", "genres": []}, {"item_id": "b", "title": "Boots"}
        kept, lost = self.send(table, encoder, *changed)
        assert "no_vector" not in kept
        assert lost["no_vector"] == "EncoderUnavailable"
        after = table.read(["a", "b"])
        assert after["a"].version > before.version
        assert (after["a"].vector, after["a"].vector_version) == (before.vector, before.vector_version)
        assert (after["b"].vector, after["b"].vector_version) == (b"", "")

    def test_the_next_change_has_its_vector(self) -> None:
        """Once the encoder is back."""
        table, encoder = item_table(), Moody()
        encoder.error = EncoderUnavailable("down")
        self.send(table, encoder, {"item_id": "a", "title": "Red tea", "version": 1})
        encoder.error = None
        (told,) = self.send(table, encoder, {"item_id": "a", "title": "Red tea", "version": 2})
        assert "no_vector" not in told
        assert len(table.read(["a"])["a"].vector) == 8


class TestPlacing:
    """The vectors of new items in the process that serves."""

    @pytest.fixture
    def snapshot(self, tmp_path: Path) -> ItemSnapshot:
        """Three items, of which two have a title."""
        columns = {"title": np.asarray([b"red tea", b"", b"green tea"])}
        write_base(tmp_path / "s", ["a", "b", "c"], columns, version="s1", spare=0)
        return open_base(tmp_path / "s")

    def source(self, encoder: TextEncoder) -> content.ContentSource:
        """A source that knows none of the items yet."""
        placed = PlacedVectors(np.full((3, DIMENSION), np.nan, np.float32), np.full(3, np.nan))
        return content.ContentSource(placed, encoder, content.Params())

    def test_new_items_are_read(self, snapshot: ItemSnapshot, files: tuple[Path, Path]) -> None:
        """Those that say something get their vectors, the others stay without one."""
        source = self.source(onnx(files))
        _, problems = with_newest({"content": source}, snapshot)
        assert problems == {}
        assert source.vectors[0] == pytest.approx(mean_of("red", "tea"), abs=1e-6)
        assert np.isnan(source.vectors[:, 0]).tolist() == [False, True, False]

    def test_an_encoder_that_is_down_is_named_and_asked_again(
        self, snapshot: ItemSnapshot, service: Service
    ) -> None:
        """Nothing else fails, and the next refresh brings the vectors."""
        source = self.source(asking(service.url, dimension=DIMENSION))
        service.answer = lambda _: (500, b"")
        _, problems = with_newest({"content": source}, snapshot)
        assert problems == {"text_encoder": "EncoderUnavailable"}
        service.answer = lambda texts: (
            200,
            json.dumps({"vectors": [[1.0] * DIMENSION for _ in texts]}).encode(),
        )
        _, problems = with_newest({"content": source}, snapshot)
        assert problems == {}
        assert np.isnan(source.vectors[:, 0]).tolist() == [False, True, False]

    def test_too_many_new_items_are_read_one_refresh_after_the_other(
        self, snapshot: ItemSnapshot, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest first, and the process says that it is behind."""
        monkeypatch.setattr(placing, "READ_AT_ONCE", 1)
        source = self.source(onnx(files))
        _, problems = with_newest({"content": source}, snapshot)
        assert problems == {"text_encoder": "behind"}
        assert np.isnan(source.vectors[:, 0]).tolist() == [True, True, False]
        _, problems = with_newest({"content": source}, snapshot)
        assert problems == {}
