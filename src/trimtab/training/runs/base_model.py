"""The model that a run starts from, what its parameters are, and the checkpoint made of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.folder import FILES, adapter_in, check_files, fetch_the_rest
from trimtab.checkpoints.names import match_renamed
from trimtab.checkpoints.quantized import refuse_quantized
from trimtab.checkpoints.stream import Source, new_buffer
from trimtab.checkpoints.tensors import DataFile
from trimtab.errors import CheckpointError, SettingsError, TrimtabError
from trimtab.masks.extract import extract_mask
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.matching import named_like
from trimtab.results.records import CheckpointRecord, record_of
from trimtab.training import runtime
from trimtab.training.folders import ORIGIN, read_json, write_json
from trimtab.words import first_few

if TYPE_CHECKING:
    from trimtab.training.layout import Layout

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""Dtypes of training, as torch calls them."""

GENERATION = "generation_config.json"

WIDER = {"BF16": ("bf16", "fp32"), "F16": ("fp32",), "F32": ("fp32",)}
"""Stored dtype -> training dtypes that hold all its values."""


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint on disk.

    Attributes:
        folder: Where it is; TRL loads reference models from there.
        record: What is recorded of it, with one hash over all its tensors.
        tensors: Name -> dtype and hash of each stored tensor.
        tied: Further names of these -> the stored name.
        layout: The parameters of the model made from it, and the stored tensors they make up.
        has_chat_template: Whether its tokenizer can write messages as text.
        files: Those that were read for the record.
    """

    folder: Path
    record: CheckpointRecord
    tensors: Mapping[str, BaseTensor]
    tied: Mapping[str, str]
    layout: Layout
    has_chat_template: bool
    files: tuple[DataFile, ...] = ()

    def load(self, dtype: str, **options: Any) -> Any:
        """Load the model, from the very files of which the record speaks.

        Args:
            dtype: `bf16` or `fp32`: of the weights.
            options: Of its config.

        Raises:
            CheckpointError: It cannot be loaded, or a file has changed since it was read for the
                record.
        """
        with loading(f"model: {self.folder}: it cannot be loaded"):
            model = load_model_of(self.folder, dtype, **options)
        self.check()
        return model

    def check(self) -> None:
        """Check that the files are those of which the record speaks.

        Raises:
            CheckpointError: One has changed.
        """
        for file in self.files:
            file.check()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor that training can move, under the names of the files."""
        return self.layout.shapes

    def layout_of(self, model: Any) -> Layout:
        """The layout of a model that was made from it, under the names of its files."""
        from trimtab.training.layout import Layout

        return Layout.of(model).named_like(self.tensors, self.tied)

    def fitted(self, mask: Mask) -> Mask:
        """A mask under the names of its files.

        Raises:
            MaskMismatchError: The mask is one for another model, or for other weights.
        """
        mask = named_like(self.layout.in_files(mask), self.tensors, self.tied)
        mask.check(self.shapes, {name: of.digest for name, of in self.tensors.items()})
        return mask

    def training_dtype(self, asked: str | None) -> str:
        """The dtype to train in: by default the stored one, and never one that loses bits.

        Raises:
            SettingsError: The weights would be rounded when they are loaded, masked or not.
        """
        stored = {tensor.dtype for tensor in self.tensors.values() if tensor.dtype in WIDER}
        possible = [dtype for dtype in ("bf16", "fp32") if all(dtype in WIDER[s] for s in stored)]
        if asked is None:
            return possible[0]
        if asked not in possible:
            raise SettingsError(
                f'dtype is "{asked}", and {self.record.id} is stored in '
                f"{' and '.join(sorted(stored))}: loading would round every weight, trained or "
                'not. Use dtype = "fp32" (with bf16 = true in [trainer] for bf16 arithmetic), or '
                "save the model in bf16 first"
            )
        return asked

    def with_dropout(self, probability: float) -> dict[str, float]:
        """What to set in the config so that every dropout has this probability.

        Raises:
            SettingsError: The model has no dropout.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder).to_dict()
        names = [name for name, value in config.items() if _is_dropout(name, value)]
        if not names:
            raise SettingsError(f"dropout is {probability}, and {self.record.id} has none to set")
        return dict.fromkeys(names, probability)

    def stored_dtypes(self, model: Any) -> dict[str, str]:
        """Name of each parameter and buffer of a model -> the dtype that files have for it.

        It is the commonest one for what is not stored, and for what is stored in several.
        """
        commonest = max(self.record.dtypes, key=lambda dtype: self.record.dtypes[dtype])
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        stored = match_renamed(names, self.tensors)
        found = {name: {stored.get(name, name)} for name in names}
        for name, piece in self.layout_of(model).stored.items():
            for source in piece.sources:
                found[source] = found[source] - {source} | {name}
        dtypes = {
            name: {self.tensors[of].dtype for of in made_of if of in self.tensors}
            for name, made_of in found.items()
        }
        return {n: of.pop() if len(of) == 1 else commonest for n, of in dtypes.items()}


def open_base(model: str, folder: Path) -> BaseModel:
    """Find a model, and read all of it once for its hashes.

    Args:
        model: A folder, or a hub id with an optional `@revision`.
        folder: What a relative path is relative to.

    Raises:
        CheckpointError: There is no such model, or it cannot be trained from.
    """
    local = folder / Path(model).expanduser()
    with open_checkpoint(local if local.exists() else model) as checkpoint:
        refuse_quantized(
            checkpoint.tensors, checkpoint.config, checkpoint.tensors, f"model: {checkpoint.id}"
        )
        where = checkpoint.folder
        refuse_adapter("model", where)
        if local.exists() and not local.is_dir():
            raise CheckpointError(f"model: {local}: expected the folder of a model, not a file")
        if checkpoint.revision is not None:
            fetch_the_rest(checkpoint.id, checkpoint.revision)
        buffer = new_buffer()
        tensors = {
            name: BaseTensor(tensor.dtype.name, Source(tensor, tensor.dtype, None, buffer).finish())
            for name, tensor in checkpoint.tensors.items()
        }
        tied = dict(checkpoint.tied)
        record = record_of(checkpoint, {name: of.digest for name, of in tensors.items()})
        files = tuple(dict.fromkeys(of.file for of in checkpoint.tensors.values()))
    strange = sorted({of.dtype for of in tensors.values()} - WIDER.keys())
    if floats := [dtype for dtype in strange if dtype.startswith(("F8", "F4", "F6"))]:
        raise CheckpointError(
            f"model: {record.id} is stored in {' and '.join(floats)}: weights are trained in bf16 "
            "or fp32; save the model in one of them first"
        )
    check_files(where)
    _check_depth(checkpoint.config, len(tensors), record.id)
    layout, has_chat_template = _layout(where, tensors, tied), _has_chat_template(where)
    _check_generation(where)
    return BaseModel(where, record, tensors, tied, layout, has_chat_template, files)


def refuse_adapter(what: str, folder: Path) -> None:
    """Refuse a folder in which transformers would put an adapter on top of the weights.

    Nothing prevents it from that, and TRL loads reference models from the same folder.

    Args:
        what: What the folder is, for the message.
        folder: The folder of a model.

    Raises:
        CheckpointError: There is an adapter in it.
    """
    if adapter := adapter_in(folder):
        raise CheckpointError(
            f"{what}: {folder}: the LoRA adapter beside its weights ({first_few(adapter)}) would "
            "be put on top of them when the model is loaded, and other weights measured than are "
            "compared: move it away if it is merged already, else merge it (PEFT's "
            "merge_and_unload, then save_pretrained)"
        )


def _is_dropout(name: str, value: Any) -> bool:
    """Whether an entry of a config is a dropout of the language model, by its usual names."""
    of_a_head = name.startswith(("classifier", "summary"))
    is_one = "dropout" in name or name.endswith("_pdrop")
    return is_one and not of_a_head and isinstance(value, float | int)


def _check_depth(config: Mapping[str, Any], num_tensors: int, name: str) -> None:
    """Refuse a config of more layers than there are tensors: transformers would build them all."""
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        num = config.get(key, 0)
        if isinstance(num, int) and num > num_tensors:
            raise CheckpointError(
                f"model: {name}: its config says {key} = {num}, and it has {num_tensors} tensors"
            )


def load_model_of(folder: Path, dtype: str, **options: Any) -> Any:
    """Load a language model, also one that reads pictures, of which only text is asked here.

    Args:
        folder: A folder that transformers reads.
        dtype: `bf16` or `fp32`: of the weights.
        options: Of its config.
    """
    from transformers import AutoConfig

    cls = _auto_class(AutoConfig.from_pretrained(folder))
    return cls.from_pretrained(folder, dtype=DTYPES[dtype], **options)


def _auto_class(config: Any) -> Any:
    """The class of transformers that makes a model of a config."""
    import transformers

    images, text = transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM
    only_with_images = (
        type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return images if only_with_images else text


def _layout(folder: Path, tensors: Mapping[str, BaseTensor], tied: Mapping[str, str]) -> Layout:
    """The layout of the model, from its config and from what is stored."""
    import torch
    from transformers import AutoConfig

    from trimtab.training.layout import Layout

    with loading(f"model: {folder}: transformers knows no language model for it"):
        config: Any = AutoConfig.from_pretrained(folder)
        if any(
            head in tensors and embed in tensors and tensors[head] != tensors[embed]
            for embed, head in TIED.items()
        ):  # transformers ties no two tensors that are stored and differ, whatever the config says
            config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        with torch.device("meta"):
            model = _auto_class(config).from_config(config)
    return Layout.of(model).named_like(tensors, tied)


def _has_chat_template(folder: Path) -> bool:
    """Look at the tokenizer, and that there is one."""
    from transformers import AutoTokenizer

    with loading(f"model: {folder}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.decode(tokenizer("0")["input_ids"])
        template = tokenizer.chat_template
        if not isinstance(template, str | dict | None):
            raise TypeError(f"its chat template is a {type(template).__name__}")
    return bool(template)


def _check_generation(folder: Path) -> None:
    """Load what says how the model samples, which is else read with the weights only."""
    from transformers import GenerationConfig

    if (folder / GENERATION).exists():
        with loading(f"model: {folder}: its {GENERATION} cannot be used"):
            GenerationConfig.from_pretrained(folder).validate()


@contextmanager
def loading(problem: str, kind: type[TrimtabError] = CheckpointError) -> Iterator[None]:
    """Loading what others wrote with transformers, which raises anything for values that it meets.

    Args:
        problem: What is the matter if it cannot be loaded.
        kind: The error that says so.

    Raises:
        TrimtabError: It cannot; of that kind.
    """
    try:
        yield
    except TrimtabError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise kind(f"{problem}: {'; '.join(lines[:2]) or repr(error)}") from error


TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

FP32 = "F32"


def save_weights(model: Any, base: BaseModel, save_dtype: str, folder: Path) -> None:
    """Save the weights, with the base's other files.

    Args:
        model: The trained model; its tensors are rounded in place.
        base: What it was made from.
        save_dtype: `stored`, as the base stores each tensor, or `fp32`.
        folder: An empty folder.
    """
    import torch

    stored_dtypes = base.stored_dtypes(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        stored = stored_dtypes[name]
        if stored in TORCH and tensor.is_floating_point():
            dtype = FP32 if save_dtype == "fp32" else stored
            tensor.data = tensor.data.to(getattr(torch, TORCH[dtype]))
    with runtime.quiet():
        model.save_pretrained(folder)
    for file in base.folder.iterdir():
        is_wanted = any(fnmatch(file.name, pattern) for pattern in FILES)
        if is_wanted and file.name != ORIGIN and not file.name.endswith(".index.json"):
            shutil.copy2(file, folder / file.name)
    if save_dtype == "fp32":
        _say_fp32(folder / "config.json")


def _say_fp32(config: Path) -> None:
    """Write the dtype into a config: transformers loads weights in the one that it finds there."""
    said = read_json(config)
    names = [name for name in ("dtype", "torch_dtype") if name in said] or ["dtype"]
    write_json(config, {**said, **dict.fromkeys(names, TORCH[FP32])})


def saved_dtypes(base: BaseModel, save_dtype: str) -> str:
    """In which dtypes `save_weights` saves."""
    wide = {FP32 if save_dtype == "fp32" and of in TORCH else of for of in base.record.dtypes}
    return ", ".join(sorted(wide))


def count_update(
    base: BaseModel, saved: Path, save_dtype: str, mask: Mask | None
) -> dict[str, Any]:
    """What saved weights differ in from the base, bit for bit, in the mask and outside.

    Weights that are saved in fp32 are compared with the base widened to it, which is exact.

    Args:
        base: The base.
        saved: Folder of the weights.
        save_dtype: As in `save_weights`.
        mask: What was trained; None for everything.
    """
    changed = extract_mask(base.folder, saved, cast="fp32" if save_dtype == "fp32" else None)
    inside = 0
    for name in changed:
        if mask is None:
            inside += changed.num_selected(name)
        elif name in mask:
            inside += int((changed.array(name) & mask.array(name)).sum())
    return {
        "criterion": "bits",
        "num_elements": changed.num_elements(),
        "num_changed": changed.num_selected(),
        "num_changed_outside_mask": changed.num_selected() - inside,
    }
