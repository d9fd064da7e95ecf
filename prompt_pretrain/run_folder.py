"""Where a pre-training run keeps its files, and the guarantee that only one run uses the folder at a time."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fvcore.common.config import CfgNode

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.checkpoints import CheckpointFolder, remove_temporary_files
from prompt_pretrain.errors import InputError
from prompt_pretrain.file_lock import FileLock


class RunFolder:
    """The published layout below one folder: prompts in ``prompt_learner/``, everything else beside it.

    Attributes:
        root: the run's folder. ``prompts``: its ``prompt_learner/``. ``states``: the resumable states.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.prompts = self.root / "prompt_learner"
        self.states = CheckpointFolder(self.root / "checkpoints")
        self._lock = FileLock(self.root / ".lock")

    def epoch_prompt(self, epoch: int) -> Path:
        """File of the prompt after ``epoch`` epochs (1-based)."""
        return self.prompts / f"model.pth.tar-{epoch}"

    @property
    def best_prompt(self) -> Path:
        return self.prompts / "model-best.pth.tar"

    def point_to(self, prompt: Path) -> None:
        """Name the latest prompt in the text file ``checkpoint``, as published tools expect."""
        with atomic_writer(self.prompts / "checkpoint", "w") as file:
            file.write(prompt.name + "\n")

    def check_writable(self) -> None:
        """Make the folder.

        Raises:
            InputError: nothing can be written there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"OUTPUT_DIR {self.root} cannot be written to ({os.strerror(error.errno or 0)}); choose another folder"
            ) from error

    def open(self) -> None:
        """Claim the folder until this process ends, however it ends, and clear up after a killed one.

        Raises:
            InputError: another training is running there.
        """
        self.check_writable()
        if not self._lock.try_acquire():
            raise InputError(f"another training is running in {self.root}; wait for it, or choose another OUTPUT_DIR")
        for folder in (self.root, self.prompts, self.states.folder):
            remove_temporary_files(folder)

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def remove_run(self) -> None:
        """Delete states and prompts of an earlier run, so that none of them passes for this one's."""
        self.states.clear()
        for pattern in ("model.pth.tar-*", "model-best.pth.tar", "checkpoint"):
            for path in self.prompts.glob(pattern):
                path.unlink()


@contextmanager
def opened_run(cfg: CfgNode, config_name: str) -> Iterator[RunFolder]:
    """The folder that OUTPUT_DIR names, or the default one; held by the main process for the time of the block.

    Raises:
        InputError: another run holds it, or it cannot be written to.
    """
    run = RunFolder(cfg.OUTPUT_DIR or default_run_folder(cfg, config_name))
    if distributed.is_main_process():
        run.open()
    try:
        yield run
    finally:
        run.close()


def default_run_folder(cfg: CfgNode, config_name: str) -> Path:
    """``output/<data set>/POMP/<config>_unc<K>_<shots>shots/nctx<M>_csc<bool>_ctp<position>/seed<seed>``.

    Of baselines ``output/<data set>/<trainer>/<config>_<shots>shots/seed<seed>``.
    """
    if cfg.TRAINER.NAME != "POMP":
        shots = f"{config_name}_{cfg.DATASET.NUM_SHOTS}shots"
        return Path("output") / _snake_case(cfg.DATASET.NAME) / cfg.TRAINER.NAME / shots / f"seed{cfg.SEED}"
    pomp = cfg.TRAINER.POMP
    num_sampled = pomp.UPDATE_CLASS_NUM if pomp.EPT and pomp.UPDATE_CLASS_NUM != 0 else "all"
    n_ctx = len(pomp.CTX_INIT.replace("_", " ").split()) or pomp.N_CTX
    return (
        Path("output")
        / _snake_case(cfg.DATASET.NAME)
        / "POMP"
        / f"{config_name}_unc{num_sampled}_{cfg.DATASET.NUM_SHOTS}shots"
        / f"nctx{n_ctx}_csc{pomp.CSC}_ctp{pomp.CLASS_TOKEN_POSITION}"
        / f"seed{cfg.SEED}"
    )


def _snake_case(name: str) -> str:
    """``ImageNet21K`` as ``imagenet_21k``, the way published folders are named."""
    name = name.replace("ImageNet", "Imagenet")
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", name).lower()
