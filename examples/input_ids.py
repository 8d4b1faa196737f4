"""Text and picture in one sequence: tokens of a picture as `input_ids` of a language model.

    python examples/input_ids.py PICTURE "a photo of a cat" drawn.png

A small random GPT-2 of the library transformers is in the place of yours. Its vocabulary grows by the ids of tokens, and
generation is held to the ids that are tokens at each place, so that whatever it draws decodes. Needs the extra `text`.
"""

import sys

import torch
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

import noisebook
from noisebook.images.files import pixels_of
from noisebook.images.io import read_image

TEXT = 256  # ids of text: its bytes; then come begin and end of a picture, then tokens


def main(picture: str, text: str, output: str, preset: str = "photo-low", **options) -> torch.Tensor:
    """Returns the tokens that the model has drawn, int64 [1, L]."""
    codec = noisebook.load(preset, **options)
    pixels = read_image(picture)
    size, how = pixels.shape[:2], {"offset": TEXT + 2, "bos": TEXT, "eos": TEXT + 1}
    ids = codec.vocabulary(size, **how)

    prompt = torch.tensor([list(text.encode())])
    image = codec.to_sequence(codec.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]), size, **how)
    input_ids = torch.cat([prompt, image], 1)  # int64 [1, T + 1 + L + 1]
    torch.manual_seed(0)
    config = {"n_positions": input_ids.shape[1], "bos_token_id": ids.bos, "eos_token_id": ids.eos}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=ids.size, n_embd=32, n_layer=1, n_head=2, **config)).eval()
    print(f"{input_ids.shape[1]} ids below {ids.size}, loss {model(input_ids, labels=input_ids).loss.item():.2f}")

    begin = prompt.shape[1] + 1
    lows, highs = [*ids.first.tolist(), ids.eos], [*(ids.first + ids.values).tolist(), ids.eos + 1]

    def allowed(_, sequence: torch.Tensor) -> list[int]:
        return list(range(lows[len(sequence) - begin], highs[len(sequence) - begin]))

    start = input_ids[:, :begin]
    drawn = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_length=input_ids.shape[1],
        do_sample=True,
        top_k=0,
        prefix_allowed_tokens_fn=allowed,
        pad_token_id=ids.eos,
    )
    tokens = codec.from_sequence(drawn[:, begin - 1 :], size, **how)  # a sequence that is none would be refused here
    Image.fromarray(pixels_of(codec.decode(tokens, size)[0])).save(output)
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
