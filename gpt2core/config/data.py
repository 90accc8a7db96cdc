"""Section `data`."""

from __future__ import annotations

from pydantic import Field

from gpt2core.config.fields import Names, Section


class Data(Section):
    """Sources of the corpus, the labeled texts, and the instructions.

    Names of the registry (gpt2core/sources/registry.py), or own/FILE for your own file in data/own/. The corpus may
    also be own/*.jsonl.zst (text, JSONL, Parquet, .gz, .zst), a URL (https://… or https://…#sha256=…), s3://BUCKET/*.gz,
    hf://datasets/OWNER/NAME/*.parquet, or a list.
    """

    corpus: Names = Field(
        default="embedded",
        description="embedded | the-verdict | tiny-shakespeare | novels | fineweb-edu-10bt | own/FILE.txt | own/FOLDER",
    )
    continued_corpus: Names | None = Field(default=None, description="a second corpus, for pretrain.continued_steps")
    classification: str = Field(
        default="embedded",
        description="embedded | sms-spam-collection | own/FILE: texts of any classes, .tsv .csv .jsonl .parquet",
    )
    classification_label_column: str | None = Field(
        default=None, description="of own/FILE; null: label, class, category, or target"
    )
    classification_text_column: str | None = Field(
        default=None, description="of own/FILE; null: text, message, sentence, or content"
    )
    instructions: str = Field(
        default="embedded",
        description="embedded | instruction-data | own/FILE.json or own/FILE.jsonl",
    )
