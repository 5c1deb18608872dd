"""The model that a run starts from, and the checkpoint that is saved from it."""

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
"""Training dtypes -> their names in torch."""

GENERATION = "generation_config.json"

WIDER = {"BF16": ("bf16", "fp32"), "F16": ("fp32",), "F32": ("fp32",)}
"""Stored dtype -> training dtypes that represent all its values."""


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint on disk.

    Attributes:
        folder: Its folder; TRL loads reference models from there.
        record: Its record, with one hash over all tensors.
        tensors: Name -> dtype and hash of each stored tensor.
        tied: Aliases of tensors -> the stored name.
        layout: The mapping between parameters and stored tensors.
        has_chat_template: Whether its tokenizer has a chat template.
        files: The files that were hashed.
    """

    folder: Path
    record: CheckpointRecord
    tensors: Mapping[str, BaseTensor]
    tied: Mapping[str, str]
    layout: Layout
    has_chat_template: bool
    files: tuple[DataFile, ...] = ()

    def load(self, dtype: str, **options: Any) -> Any:
        """Load the model, and check that its files have not changed since they were hashed.

        Args:
            dtype: Dtype of the weights: `bf16` or `fp32`.
            options: Overrides of its config.

        Raises:
            CheckpointError: It cannot be loaded, or a file has changed.
        """
        with loading(f"model: {self.folder}: it cannot be loaded"):
            model = load_model_of(self.folder, dtype, **options)
        self.check()
        return model

    def check(self) -> None:
        """Check that no file has changed since it was hashed.

        Raises:
            CheckpointError: A file has changed.
        """
        for file in self.files:
            file.check()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each trainable tensor, under the names of the files."""
        return self.layout.shapes

    def layout_of(self, model: Any) -> Layout:
        """The layout of a model loaded from it, under the names of its files."""
        from trimtab.training.layout import Layout

        return Layout.of(model).named_like(self.tensors, self.tied)

    def fitted(self, mask: Mask) -> Mask:
        """Convert a mask to the names of its files, and check it.

        Raises:
            MaskMismatchError: The mask was made for another model, or for other weights.
        """
        mask = named_like(self.layout.in_files(mask), self.tensors, self.tied)
        mask.check(self.shapes, {name: tensor.digest for name, tensor in self.tensors.items()})
        return mask

    def training_dtype(self, requested: str | None) -> str:
        """The dtype to train in: by default the stored one, and never a narrower one.

        Raises:
            SettingsError: Loading would round the weights.
        """
        stored = {tensor.dtype for tensor in self.tensors.values() if tensor.dtype in WIDER}
        possible = [dtype for dtype in ("bf16", "fp32") if all(dtype in WIDER[s] for s in stored)]
        if requested is None:
            return possible[0]
        if requested not in possible:
            raise SettingsError(
                f'dtype is "{requested}", and {self.record.id} is stored in '
                f"{' and '.join(sorted(stored))}: loading would round every weight, trained or "
                'not. Use dtype = "fp32" (with bf16 = true in [trainer] for bf16 arithmetic), or '
                "save the model in bf16 first"
            )
        return requested

    def with_dropout(self, probability: float) -> dict[str, float]:
        """The config entries that set every dropout to this probability.

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
        """Name of each parameter and buffer of a model -> its stored dtype.

        It is the most common dtype for tensors that are not stored, or stored in several dtypes.
        """
        commonest = max(self.record.dtypes, key=lambda dtype: self.record.dtypes[dtype])
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        stored = match_renamed(names, self.tensors)
        sources = {name: {stored.get(name, name)} for name in names}
        for name, piece in self.layout_of(model).stored.items():
            for source in piece.sources:
                sources[source] = sources[source] - {source} | {name}
        dtypes = {
            name: {self.tensors[source].dtype for source in some if source in self.tensors}
            for name, some in sources.items()
        }
        return {n: some.pop() if len(some) == 1 else commonest for n, some in dtypes.items()}


def open_base(model: str, folder: Path) -> BaseModel:
    """Find a model, and hash all its tensors.

    Args:
        model: A folder, or a hub id with an optional `@revision`.
        folder: Base of relative paths.

    Raises:
        CheckpointError: The model does not exist, or cannot be used for training.
    """
    local = folder / Path(model).expanduser()
    with open_checkpoint(local if local.exists() else model) as checkpoint:
        refuse_quantized(
            checkpoint.tensors, checkpoint.config, checkpoint.tensors, f"model: {checkpoint.id}"
        )
        path = checkpoint.folder
        refuse_adapter("model", path)
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
        record = record_of(checkpoint, {n: tensor.digest for n, tensor in tensors.items()})
        files = tuple(dict.fromkeys(tensor.file for tensor in checkpoint.tensors.values()))
    strange = sorted({tensor.dtype for tensor in tensors.values()} - WIDER.keys())
    if floats := [dtype for dtype in strange if dtype.startswith(("F8", "F4", "F6"))]:
        raise CheckpointError(
            f"model: {record.id} is stored in {' and '.join(floats)}: weights are trained in bf16 "
            "or fp32; save the model in one of them first"
        )
    check_files(path)
    _check_depth(checkpoint.config, len(tensors), record.id)
    layout, has_chat_template = _layout(path, tensors, tied), _has_chat_template(path)
    _check_generation(path)
    return BaseModel(path, record, tensors, tied, layout, has_chat_template, files)


def refuse_adapter(what: str, folder: Path) -> None:
    """Refuse a folder in which transformers would load an adapter on top of the weights.

    This cannot be switched off, and TRL loads reference models from the same folder.

    Args:
        what: What the folder is, for the message.
        folder: The folder of a model.

    Raises:
        CheckpointError: The folder has an adapter.
    """
    if adapter := adapter_in(folder):
        raise CheckpointError(
            f"{what}: {folder}: the LoRA adapter beside its weights ({first_few(adapter)}) would "
            "be loaded on top of them, so that other weights are measured than are compared: "
            "move it away if it is merged already, else merge it (PEFT's "
            "merge_and_unload, then save_pretrained)"
        )


def _is_dropout(name: str, value: Any) -> bool:
    """Whether an entry of a config is a dropout of the language model."""
    of_a_head = name.startswith(("classifier", "summary"))
    is_one = "dropout" in name or name.endswith("_pdrop")
    return is_one and not of_a_head and isinstance(value, float | int)


def _check_depth(config: Mapping[str, Any], num_tensors: int, name: str) -> None:
    """Refuse a config with more layers than tensors: transformers would build them all."""
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        num = config.get(key, 0)
        if isinstance(num, int) and num > num_tensors:
            raise CheckpointError(
                f"model: {name}: its config says {key} = {num}, and it has {num_tensors} tensors"
            )


def load_model_of(folder: Path, dtype: str, **options: Any) -> Any:
    """Load a language model, or a vision-language model for text only.

    Args:
        folder: A folder that transformers reads.
        dtype: Dtype of the weights: `bf16` or `fp32`.
        options: Overrides of its config.
    """
    from transformers import AutoConfig

    cls = _auto_class(AutoConfig.from_pretrained(folder))
    return cls.from_pretrained(folder, dtype=DTYPES[dtype], **options)


def _auto_class(config: Any) -> Any:
    """The class of transformers that builds a model from a config."""
    import transformers

    images, text = transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM
    only_with_images = (
        type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return images if only_with_images else text


def _layout(folder: Path, tensors: Mapping[str, BaseTensor], tied: Mapping[str, str]) -> Layout:
    """The layout of the model, from its config and the stored tensors."""
    import torch
    from transformers import AutoConfig

    from trimtab.training.layout import Layout

    with loading(f"model: {folder}: transformers knows no language model for it"):
        config: Any = AutoConfig.from_pretrained(folder)
        if any(
            head in tensors and embed in tensors and tensors[head] != tensors[embed]
            for embed, head in TIED.items()
        ):  # transformers does not tie tensors whose stored values differ, whatever the config says
            config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        with torch.device("meta"):
            model = _auto_class(config).from_config(config)
    return Layout.of(model).named_like(tensors, tied)


def _has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer has a chat template; also checks that it can be loaded."""
    from transformers import AutoTokenizer

    with loading(f"model: {folder}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.decode(tokenizer("0")["input_ids"])
        template = tokenizer.chat_template
        if not isinstance(template, str | dict | None):
            raise TypeError(f"its chat template is a {type(template).__name__}")
    return bool(template)


def _check_generation(folder: Path) -> None:
    """Check the generation config, which is otherwise only read with the weights."""
    from transformers import GenerationConfig

    if (folder / GENERATION).exists():
        with loading(f"model: {folder}: its {GENERATION} cannot be used"):
            GenerationConfig.from_pretrained(folder).validate()


@contextmanager
def loading(problem: str, kind: type[TrimtabError] = CheckpointError) -> Iterator[None]:
    """Convert any exception of transformers while it loads a file into one of ours.

    Args:
        problem: Start of the message.
        kind: Type of the error to raise.

    Raises:
        TrimtabError: Loading failed.
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
        base: The base that it was loaded from.
        save_dtype: `stored`, the dtype of each tensor in the base, or `fp32`.
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
    """Write the dtype into a config: transformers loads weights in this dtype."""
    content = read_json(config)
    names = [name for name in ("dtype", "torch_dtype") if name in content] or ["dtype"]
    write_json(config, {**content, **dict.fromkeys(names, TORCH[FP32])})


def saved_dtypes(base: BaseModel, save_dtype: str) -> str:
    """The dtypes in which `save_weights` saves."""
    dtypes = {FP32 if save_dtype == "fp32" and d in TORCH else d for d in base.record.dtypes}
    return ", ".join(sorted(dtypes))


def count_update(
    base: BaseModel, saved: Path, save_dtype: str, mask: Mask | None
) -> dict[str, Any]:
    """Count the elements of saved weights that differ from the base, inside and outside the mask.

    Weights that are saved in fp32 are compared with the base cast to fp32, which is exact.

    Args:
        base: The base.
        saved: Folder of the weights.
        save_dtype: As in `save_weights`.
        mask: The trained elements; None for everything.
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
