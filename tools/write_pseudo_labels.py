r"""Write label maps for self-training from the predictions of a pseudo-label evaluation.

    python tools/train_net.py --eval-only --config-file … PSEUDO True DATASETS.TEST "('coco_2017_train_stuff_sem_seg',)"
    python tools/write_pseudo_labels.py --dataset coco_2017_train_stuff_sem_seg \
        --predictions output/inference/sem_seg_predictions.json --output output/pseudo
    DETECTRON2_SEM_PSEUDO=output/pseudo python tools/train_net.py … \
        DATASETS.TRAIN "('coco_2017_train_stuff_sem_seg_pseudo',)"
"""

import argparse
import sys
from collections.abc import Sequence

from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered data set that was evaluated")
    parser.add_argument("--predictions", required=True, metavar="FILE", help="its sem_seg_predictions.json")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the label maps")
    args = parser.parse_args(argv)

    import segmentation  # noqa: F401  (registers the data sets)
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from segmentation.pseudo_label_maps import write_pseudo_label_maps

    if args.dataset not in DatasetCatalog.list():
        raise InputError(f"--dataset {args.dataset} is not registered; tools/check_dataset.py --list names all")
    mapping = MetadataCatalog.get(args.dataset).get("stuff_dataset_id_to_contiguous_id")
    count = write_pseudo_label_maps(args.predictions, args.output, mapping)
    print(f"{counted(count, 'label map')} in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
