"""Which chats are learned: the recipe's chat sources, entries as those of the catalogue of texts.

A kind's settings stand in the module that makes its chats; docs/sources.md tells of each with an example.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from khmer_assets.foundation.settings import FileBeside, Name, Settings
from khmer_assets.instructions.chat_files import QUALITY, ChatFiles
from khmer_assets.instructions.chats import Split
from khmer_assets.instructions.dialogues import Dialogues
from khmer_assets.instructions.questions_and_answers import QuestionsAndAnswers
from khmer_assets.instructions.translation import Translated
from khmer_assets.instructions.tutor_tasks import BY_RULES, TutorTasks


class Embedded(Settings):
    """`generated_chats`: how many are composed from the sample's facts, beside those written by hand."""

    generated_chats: Annotated[int, Field(ge=10)]


class _Entry(Settings):
    """`name` is the chats' `source` and the beginning of their ids; `license` goes into the model card."""

    name: Name
    license: str


class EmbeddedSource(_Entry):
    """The project's own chats."""

    kind: Literal["embedded"]
    settings: Embedded


class ChatFilesSource(_Entry):
    """Files of chats."""

    kind: Literal["chat_files"]
    settings: ChatFiles


class QuestionsSource(_Entry):
    """Questions and answers that teachers write."""

    kind: Literal["questions_and_answers"]
    settings: QuestionsAndAnswers


class DialoguesSource(_Entry):
    """Dialogues that teachers write."""

    kind: Literal["dialogues"]
    settings: Dialogues


class TutorSource(_Entry):
    """A tutor's tasks."""

    kind: Literal["tutor_tasks"]
    settings: TutorTasks = TutorTasks()


class TranslatedSource(_Entry):
    """English chats in Khmer."""

    kind: Literal["translated"]
    settings: Translated


ChatSource = Annotated[
    EmbeddedSource | ChatFilesSource | QuestionsSource | DialoguesSource | TutorSource | TranslatedSource,
    Field(discriminator="kind"),
]


class Instructions(Settings):
    """Which chats are learned, which of them are kept, and how they are split.

    `sources` are entries of any kind. `files` and `generated_chats` are short for one of the kind `chat_files` (JSONL
    and the other formats, relative to the recipe) and one of the kind `embedded`; null: none of it. `min_quality`
    (1 to 10) sets chats aside that were judged to be worse; chats that nobody has judged stay.
    """

    files: list[FileBeside] = []
    generated_chats: Annotated[int, Field(ge=10)] | None = None
    split: Split = Split()
    sources: list[ChatSource] = []
    min_quality: Annotated[float, Field(ge=QUALITY[0], le=QUALITY[1])] | None = None

    @model_validator(mode="after")
    def _has_chats(self) -> "Instructions":
        if not self.files and self.generated_chats is None and not self.sources:
            raise ValueError("there is no chat to learn from: name sources or files of chats, or set generated_chats")
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]!r}; give each its own name")
        for source in self.sources:
            if isinstance(source, QuestionsSource | DialoguesSource) and not _written_about(source):
                raise ValueError(f"the source {source.name!r} is about nothing: set documents or topics")
        return self

    def of(self, kind: str) -> list[ChatSource]:
        """The sources of one kind, in the order of the recipe."""
        return [source for source in self.sources if source.kind == kind]

    @property
    def asks_teachers(self) -> list[str]:
        """The names of the sources that cannot do without a teacher."""
        return [source.name for source in self.sources if isinstance(source, QuestionsSource | DialoguesSource)] + [
            source.name
            for source in self.sources
            if isinstance(source, TutorSource) and not set(source.settings.tasks) & set(BY_RULES)
        ]

    @property
    def reads_texts(self) -> list[str]:
        """The names of the sources that are made of the training mixture."""
        return [
            source.name
            for source in self.sources
            if isinstance(source, TutorSource)
            or (isinstance(source, QuestionsSource | DialoguesSource) and source.settings.documents is not None)
        ]


def _written_about(source: QuestionsSource | DialoguesSource) -> bool:
    return bool(source.settings.topics) or source.settings.documents is not None
