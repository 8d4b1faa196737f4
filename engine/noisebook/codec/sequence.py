"""Tokens as ids of a sequence model, and back: `Codec.to_sequence`, `Codec.from_sequence`, `Codec.vocabulary`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from noisebook.codec.checks import TOKEN_DTYPES, check_tensor, check_tokens
from noisebook.codec.engine import Engine
from noisebook.errors import CodecMismatchError, SpecError


@dataclass(frozen=True)
class Vocabulary:
    """Which ids a sequence model sees for the tokens of one picture.

    Position i of the tokens has the ids first[i] ... first[i] + values[i] - 1, in the order of the token's values.

    first    int64 [L], the id of value 0 at each position
    values   int64 [L], how many values each position has, `Layout.vocab_size`
    bos, eos   ids before and after the tokens; None: there is none
    size     ids that the model needs, `vocab_size` of its embedding: 1 + the largest id
    """

    first: Tensor
    values: Tensor
    bos: int | None
    eos: int | None
    size: int

    @property
    def length(self) -> int:
        """Ids of a sequence: the L tokens, and bos and eos where they are."""
        return len(self.first) + (self.bos is not None) + (self.eos is not None)

    def to_sequence(self, tokens: Tensor) -> Tensor:
        """As `Codec.to_sequence`; int64 tokens [B, L]."""
        ids = tokens + self.first.to(tokens.device)
        before, after = (ids.new_full((len(ids), 1), end) for end in (self.bos or 0, self.eos or 0))
        return torch.cat([*([] if self.bos is None else [before]), ids, *([] if self.eos is None else [after])], 1)

    def from_sequence(self, ids: Tensor) -> Tensor:
        """As `Codec.from_sequence`."""
        check_tensor(ids, "a sequence", CodecMismatchError)
        if ids.ndim != 2 or ids.dtype not in TOKEN_DTYPES or ids.shape[1] != self.length:
            parts = ["bos"] * (self.bos is not None) + [f"{len(self.first)} tokens"] + ["eos"] * (self.eos is not None)
            wanted = f"integers [B, {self.length}] ({', '.join(parts)})"
            raise CodecMismatchError(f"a sequence of this codec is {wanted}, not {ids.dtype} {list(ids.shape)}")
        ids = ids.to(torch.int64)  # one that is too large for it becomes negative, and is no token
        for name, end, column in (("bos", self.bos, 0), ("eos", self.eos, -1)):
            if end is not None and (wrong := (ids[:, column] != end).nonzero()).numel():
                row = int(wrong[0, 0])
                where = "begins" if column == 0 else "ends"
                raise CodecMismatchError(f"sequence {row} {where} with {int(ids[row, column])}, not with {name} = {end}")
        begin = int(self.bos is not None)
        tokens = ids[:, begin : begin + len(self.first)] - self.first.to(ids.device)
        wrong = ((tokens < 0) | (tokens >= self.values.to(ids.device))).nonzero()
        if wrong.numel():
            row, place = wrong[0].tolist()
            low, high = int(self.first[place]), int(self.first[place] + self.values[place]) - 1
            raise CodecMismatchError(
                f"sequence {row} has the id {int(ids[row, begin + place])} at place {begin + place}, where tokens are "
                f"{low} ... {high}: let the model choose among these only"
            )
        return tokens


class Sequences(Engine):
    """What a codec has for sequence models; `Codec` is one."""

    def vocabulary(
        self,
        size: tuple[int, int] | None = None,
        *,
        offset: int = 0,
        bos: int | None = None,
        eos: int | None = None,
        per_position: bool = False,
    ) -> Vocabulary:
        """The ids of pictures of `size`, (H, W), default `default_size`.

        offset   the smallest id of a token: above the ids of text, for a model that has both
        bos, eos   ids outside of the tokens'; they may be one id
        per_position   False: value v has the id offset + v at every position, and tokens take the largest vocab_size ids. A
                 value means another codeword at each position, so the model must know the position (it has embeddings of
                 positions). True: each position has its own ids, and tokens take the sum of all vocab_size ids: for
                 codecs of few tokens

        Raises SpecError for a negative id, for bos or eos among the ids of tokens, and for ids that no int64 holds.
        """
        values = self.layout_for(*(size or self.default_size)).vocab_size
        first = values.cumsum(0) - values if per_position else torch.zeros_like(values)
        span = int(values.sum()) if per_position else int(values.max()) if len(values) else 0
        for name, number in (("offset", offset), ("bos", bos), ("eos", eos)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
                raise SpecError(f"{name} must be a whole number, 0 or above, not {number!r}")
            if name != "offset" and number is not None and offset <= number < offset + span:
                raise SpecError(f"{name} = {number} is the id of a token: tokens are {offset} ... {offset + span - 1}")
        needed = max(offset + span, *(end + 1 for end in (bos, eos) if end is not None), 0)
        if needed >= 1 << 63:
            raise SpecError(f"ids up to {needed - 1} are no int64: give a smaller offset, bos and eos")
        return Vocabulary(first + offset, values, bos, eos, needed)

    def to_sequence(
        self,
        tokens: Tensor,
        size: tuple[int, int] | None = None,
        *,
        offset: int = 0,
        bos: int | None = None,
        eos: int | None = None,
        per_position: bool = False,
    ) -> Tensor:
        """Tokens [B, L] of any integer dtype, of pictures of `size` -> ids int64 [B, bos + L + eos], the `input_ids` of a
        sequence model, in the order of `Layout`; the options are those of `vocabulary`.

        Raises SpecError as `vocabulary`, CodecMismatchError for what are no tokens of this codec."""
        check_tensor(tokens, "tokens", CodecMismatchError)
        size = size or self.default_size
        ids = self.vocabulary(size, offset=offset, bos=bos, eos=eos, per_position=per_position)
        check_tokens(tokens, len(ids.first), *size)
        tokens = tokens.to(torch.int64)
        if ((tokens < 0) | (tokens >= ids.values.to(tokens.device))).any():
            raise CodecMismatchError("a token is outside its vocabulary: the tokens are of another codec")
        return ids.to_sequence(tokens)

    def from_sequence(
        self,
        ids: Tensor,
        size: tuple[int, int] | None = None,
        *,
        offset: int = 0,
        bos: int | None = None,
        eos: int | None = None,
        per_position: bool = False,
    ) -> Tensor:
        """The inverse of `to_sequence` under the same options: ids [B, bos + L + eos] of any integer dtype -> tokens int64
        [B, L], which `decode` takes.

        Raises SpecError as `vocabulary`, CodecMismatchError for a sequence of another length, without bos or eos at its
        ends, or with an id that is no token at its place: the message names the first one."""
        return self.vocabulary(size, offset=offset, bos=bos, eos=eos, per_position=per_position).from_sequence(ids)
