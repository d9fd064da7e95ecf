import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain.errors import InputError
from tests.detection.deformable_detr.tiny_detr import NUM_CLASSES, made_up_inputs, tiny_model

LOSSES = {f"{name}{suffix}" for name in ("loss_ce", "loss_bbox", "loss_giou") for suffix in ("", "_0", "_enc")}


def test_names_are_the_published_ones():
    names = set(tiny_model().state_dict())
    encoder, decoder = "detr.transformer.encoder.layers.0.", "detr.transformer.decoder.layers.1."
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    expected = [f"{encoder}self_attn.{part}" for part in attention] + [
        f"{decoder}cross_attn.{part}" for part in attention
    ]
    expected += [f"{encoder}{part}" for part in ("norm1", "linear1", "linear2", "norm2")]
    expected += [f"{decoder}{part}" for part in ("norm1", "norm2", "norm3", "linear1", "linear2", "self_attn.out_proj")]
    expected += [
        f"detr.transformer.{part}" for part in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
    ]
    for i in range(3):  # two decoder layers and the first stage
        expected += [f"detr.class_embed.{i}", f"detr.transformer.decoder.class_embed.{i}"]
        expected += [f"detr{part}.bbox_embed.{i}.layers.2" for part in ("", ".transformer.decoder")]
    expected += [f"detr.input_proj.{level}.{part}" for level in range(4) for part in (0, 1)]
    wanted = {f"{name}.{kind}" for name in expected for kind in ("weight", "bias")}
    wanted |= {f"{decoder}self_attn.in_proj_weight", f"{decoder}self_attn.in_proj_bias", "detr.transformer.level_embed"}
    assert wanted <= names
    repeated = ("detr.backbone.0.backbone.", "detr.transformer.decoder.layers.0.")
    rest = {name for name in names - wanted if not name.startswith(repeated)}
    assert all("bbox_embed" in name for name in rest), sorted(rest)


def test_one_stage_has_learned_queries_and_reference_points():
    names = set(tiny_model("MODEL.DETR.TWO_STAGE", False, "MODEL.DETR.WITH_BOX_REFINE", False).state_dict())
    assert {"detr.query_embed.weight", "detr.transformer.reference_points.weight", "detr.class_embed.1.bias"} <= names
    assert not any("enc_output" in name or "decoder.bbox_embed" in name for name in names)


@pytest.mark.parametrize("two_stage, refine", [(True, True), (False, True), (False, False)])
def test_training_gives_losses_and_gradients_everywhere(two_stage, refine):
    model = tiny_model("MODEL.DETR.TWO_STAGE", two_stage, "MODEL.DETR.WITH_BOX_REFINE", refine).train()
    losses = model(made_up_inputs((64, 96), (80, 64)))
    assert set(losses) == {name for name in LOSSES if two_stage or not name.endswith("_enc")}
    sum(losses.values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_without_deep_supervision_only_the_last_layer_and_first_stage_learn():
    model = tiny_model("MODEL.DETR.DEEP_SUPERVISION", False).train()
    assert set(model(made_up_inputs((64, 64)))) == {name for name in LOSSES if not name.endswith("_0")}


def test_image_batches_have_the_keys_of_box_batches_and_their_own_loss():
    model = tiny_model("WITH_IMAGE_LABELS", True).train()
    boxes = [entry | {"ann_type": "box", "pos_category_ids": []} for entry in made_up_inputs((64, 64))]
    images = [entry | {"ann_type": "image", "pos_category_ids": [2]} for entry in made_up_inputs((64, 64), objects=0)]
    of_boxes, of_images = model(boxes), model(images)
    assert set(of_boxes) == set(of_images) == LOSSES | {"loss_image"}
    assert of_boxes["loss_image"] == 0 and of_images["loss_image"] > 0
    assert all(loss == 0 for name, loss in of_images.items() if name != "loss_image")
    sum(of_images.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(InputError, match="mixes annotation types"):
        model(boxes + images)


def test_detections_lie_in_the_wanted_size_and_are_the_best_pairs():
    model = tiny_model().eval()
    entry = made_up_inputs((64, 96))[0] | {"height": 128, "width": 192}
    with torch.no_grad():
        found = model([entry])[0]["instances"]
        layer = model.detr(model.preprocess_image([entry]))[0][-1]
    assert found.image_size == (128, 192)
    assert len(found) <= 12 and found.scores.equal(found.scores.sort(descending=True).values)
    best = layer.logits[0].flatten().topk(12)
    assert_close(found.scores, best.values.sigmoid())
    assert found.pred_classes.tolist() == (best.indices % NUM_CLASSES).tolist()
    centre_x = layer.boxes[0, best.indices // NUM_CLASSES, 0] * 192
    width = layer.boxes[0, best.indices // NUM_CLASSES, 2] * 192
    assert_close(found.pred_boxes.tensor[:, 0], (centre_x - width / 2).clamp(0, 192))


def test_padding_does_not_reach_the_predictions():
    """Two batches that differ only in features of padded cells."""
    model = tiny_model().eval()
    maps = [torch.randn(2, 64, 8, 8), torch.randn(2, 64, 4, 4)]
    masks = [torch.zeros(2, 8, 8, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)]
    masks[0][1, :, 6:] = masks[1][1, :, 3:] = True
    transformer = tiny_model("MODEL.DETR.NUM_FEATURE_LEVELS", 4).detr.transformer.eval()
    maps += [torch.randn(2, 64, 2, 2), torch.randn(2, 64, 1, 1)]
    masks += [torch.zeros(2, 2, 2, dtype=torch.bool), torch.zeros(2, 1, 1, dtype=torch.bool)]
    positions = [model.detr.backbone[1](mask) for mask in masks]
    other = [
        torch.where(mask[:, None], torch.randn_like(level), level) for level, mask in zip(maps, masks, strict=True)
    ]
    with torch.no_grad():
        first, second = (transformer(levels, masks, positions, None) for levels in (maps, other))
    assert_close(first.hidden, second.hidden)
    assert_close(first.references, second.references)


def test_an_image_with_fewer_cells_than_queries_works():
    model = tiny_model().eval()
    with torch.no_grad():
        found = model([{"image": torch.zeros(3, 1, 1)}])[0]["instances"]
    assert found.image_size == (1, 1)
    assert torch.isfinite(found.scores).all()


def test_a_state_dict_comes_back():
    model, other = tiny_model(), tiny_model()
    for parameter in other.parameters():
        parameter.data.add_(1)
    other.load_state_dict(model.state_dict())
    inputs = made_up_inputs((64, 64))
    with torch.no_grad():
        ours, theirs = (x.eval()(inputs)[0]["instances"] for x in (model, other))
    assert_close(ours.scores, theirs.scores)


def test_a_few_steps_bring_the_loss_down():
    torch.manual_seed(0)
    model = tiny_model().train()
    inputs = made_up_inputs((64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(25):
        losses = model(inputs)
        total = sum(loss for name, loss in losses.items() if name.startswith(("loss_bbox", "loss_giou")))
        totals.append(total.item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    assert min(totals[-5:]) < 0.75 * totals[0]


def category_file(folder: Path, count: int) -> str:
    file = folder / "counts.json"
    file.write_text(json.dumps([{"id": i + 1, "image_count": i + 1} for i in range(count)]))
    return str(file)


def test_federated_weights_come_from_the_category_file(tmp_path):
    file = category_file(tmp_path, 5)
    model = tiny_model("MODEL.DETR.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", file)
    weights = model.state_dict()["criterion.fed_loss_weight"]
    assert_close(weights, torch.tensor([1.0, 2, 3, 4, 5, 0, 0]).sqrt())


def test_more_counted_categories_than_classes_are_an_error(tmp_path):
    file = category_file(tmp_path, 9)
    with pytest.raises(InputError, match="counts 9 categories but MODEL.DETR.NUM_CLASSES is 7"):
        tiny_model("MODEL.DETR.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", file)


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.MASK_ON", True], "MODEL.MASK_ON is True"),
        (["MODEL.DETR.PRE_NORM", True], "MODEL.DETR.PRE_NORM is True"),
        (["MODEL.DETR.WITH_BOX_REFINE", False], "TWO_STAGE needs MODEL.DETR.WITH_BOX_REFINE"),
        (["MODEL.DETR.NUM_FEATURE_LEVELS", 2], "NUM_FEATURE_LEVELS is 2, but the backbone gives 3 maps"),
        (["MODEL.DETR.HIDDEN_DIM", 48], "HIDDEN_DIM is 48, expected a multiple of 32"),
    ],
)
def test_settings_that_do_not_go_together_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        tiny_model(*options)
