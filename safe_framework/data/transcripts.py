"""What was said in the samples of a modality, each written down once."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safe_framework.config.schema import TranscriptSpec
from safe_framework.data.frame_cache import sample_key
from safe_framework.data.long_sounds import loaded
from safe_framework.errors import SafeError, cannot_transcribe
from safe_framework.interfaces.encoder import Encoder, TranscribingEncoder
from safe_framework.interfaces.samples import Sample
from safe_framework.utils.files import atomic_write
from safe_framework.utils.hashing import text_fingerprint

_KEPT = 4096  # transcripts in memory, which are short
_CUT = " ..."


class TranscriptCut(UserWarning):
    """What was said is longer than ``max_tokens`` of ``transcript``: only its beginning is read."""


class Transcripts:
    """Texts of one modality's samples, as they stand in a prompt.

    Args:
        name: of the modality, for messages.
        encoder: whose model writes them.
        spec: how.

    Attributes:
        spec: as given.
        transcriber: that writes them.
        folder: where transcripts are kept on disk, under the transcriber's fingerprint and the
            sample's content; None keeps the latest in memory alone.

    Raises:
        SafeError: the encoder cannot transcribe, or not so.
    """

    def __init__(self, name: str, encoder: Encoder, spec: TranscriptSpec) -> None:
        if not isinstance(encoder, TranscribingEncoder):
            raise cannot_transcribe(type(encoder).__name__, name)
        try:
            self.transcriber = encoder.transcriber(
                language=spec.language, timestamps=spec.timestamps
            )
        except ValueError as error:
            raise SafeError(f"`transcript` of `{name}`: {error}") from error
        self.name, self.spec = name, spec
        self.folder: Path | None = None
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, sample: Sample, tokenizer: Any) -> str:
        """What stands in the prompt for a sample; empty where nothing was said.

        Args:
            sample: as the encoder takes it.
            tokenizer: of the base, in whose tokens ``max_tokens`` counts.

        Raises:
            SampleError: it cannot be transcribed.

        Warns:
            TranscriptCut: it is longer than ``max_tokens``.
        """
        said = self.words(sample)
        return self.spec.form.replace("{transcript}", self._cut(said, tokenizer)) if said else ""

    def words(self, sample: Sample) -> str:
        """What was said in a sample, written down once.

        Raises:
            SampleError: it cannot be transcribed.
        """
        key = sample_key(sample)
        with self._lock:  # a server reads requests in several threads
            if key not in self._known:
                self._known[key] = self._read(key, sample)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]

    def _read(self, key: str, sample: Sample) -> str:
        if self.folder is None:
            return self._write(sample)
        kind = text_fingerprint(type(self.transcriber).__qualname__, self.transcriber.fingerprint)
        path = self.folder / kind[:32] / f"{key}.txt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, self._write(sample).encode())
        return path.read_text("utf-8")

    def _write(self, sample: Sample) -> str:
        return " ".join(self.transcriber([loaded(sample)])[0].split())

    def _cut(self, said: str, tokenizer: Any) -> str:
        most = self.spec.max_tokens
        if most is None:
            return said
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        if len(ids) <= most:
            return said
        warnings.warn(
            f"what was said in a sample of `{self.name}` has {len(ids)} tokens, of which the first "
            f"{most} are read: `max_tokens` of `transcript`",
            TranscriptCut,
            stacklevel=2,
        )
        return str(tokenizer.decode(ids[:most])).rstrip() + _CUT
