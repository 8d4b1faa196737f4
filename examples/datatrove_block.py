"""A block of datatrove: the pictures of its documents become tokens.

    python examples/datatrove_block.py DOCUMENTS OUTPUT

Needs the package `datatrove`. DOCUMENTS is a folder of .jsonl files as its writers make them, with the bytes
of `media`. The tokens of each picture stand in the metadata of its `Media`, and its bytes go.
"""

import sys

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from noisebook import ImageError
from noisebook.torch import Transform


class PicturesToTokens(PipelineStep):
    name, type = "noisebook", "tokens of pictures"

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform  # is pickled to each task, where it makes its own codec

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for document in data:
            for media in document.media:
                try:
                    media.metadata["tokens"] = self.transform(media.media_bytes).tolist()
                    self.stat_update("pictures")
                except ImageError as error:  # a broken picture is no reason to lose the document, nor to be silent
                    media.metadata["error"] = str(error)
                    self.stat_update("failed")
                media.media_bytes = None
            yield document


def main(documents: str, output: str, tasks: int = 1, preset: str = "photo-low", **options) -> None:
    block = PicturesToTokens(Transform(preset, **options))
    steps = [JsonlReader(documents), block, JsonlWriter(output, compression=None)]
    LocalPipelineExecutor(steps, tasks=tasks, logging_dir=f"{output}/logs").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
