"""What images are made with: generators, views, hooks, memories and pools, each by itself."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cascade.errors import RecipeError
from tests.training.networks import Says, frozen, same, state, training_set
from training import models
from training.crops import inside
from training.pictures import contact_sheet
from training.settings import Augment
from training.synthesis.base import Synthesis, adam, descend, in_eval_mode, probe, unlabelled
from training.synthesis.contrast import Head, PairBank
from training.synthesis.generator import Double, Generator, restart
from training.synthesis.pool import ImagePool
from training.synthesis.rows import Rows
from training.synthesis.statistics import instance_means, norms_of, watched
from training.synthesis.views import part_view, taps, view, whole_view

pytestmark = pytest.mark.train

STILL = Augment(pad=0, flip=False)


def images(count: int = 5, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pool(augment: Augment = STILL) -> ImagePool:
    return ImagePool(replace(training_set(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), augment=augment))


def test_a_generator_makes_colours_of_any_size_that_it_can_double_to() -> None:
    for size in (8, 12, 32):
        made = Generator(6, 8, 4, size)(torch.randn(3, 6))
        assert made.shape == (3, 3, size, size)
        assert ((made > 0) & (made < 1)).all()


def test_a_size_that_it_cannot_double_to_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.size 30 is no multiple of 4"):
        Generator(6, 8, 4, 30)


def test_doubling_is_that_of_nearest_neighbours() -> None:
    x = images()
    assert torch.equal(Double()(x), nn.functional.interpolate(x, scale_factor=2))


def test_a_generator_that_begins_again_has_forgotten_everything() -> None:
    torch.manual_seed(0)
    net = Generator(64, 64, 32, 8)
    net(torch.randn(4, 64))
    restart(net)
    values = dict(net.named_parameters())
    assert values["4.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert values["5.weight"].mean().item() == pytest.approx(1, abs=0.02)
    assert not any(value.any() for name, value in values.items() if name.endswith("bias"))
    assert not any(value.any() for name, value in net.named_buffers() if name.endswith("running_mean"))


def test_hooks_note_what_every_batch_norm_is_given_and_are_gone_afterwards() -> None:
    net = frozen("resnet8_0.25_a", 1)
    with watched(net) as seen:
        net(images())
    net(images())
    assert len(seen) == len(norms_of(net)) == 7
    first = net.get_submodule("stem")[0](images())  # type: ignore[index]
    assert torch.equal(seen[0].maps, first)
    assert torch.equal(seen[0].mean, norms_of(net)[0].running_mean)  # type: ignore[arg-type]
    assert instance_means(seen).shape == (5, sum(norm.num_features for norm in norms_of(net)))


def test_hooks_are_gone_where_the_network_fails() -> None:
    net = frozen("resnet8_0.25_a", 1)
    with pytest.raises(RuntimeError), watched(net) as seen:
        net(torch.zeros(1, 5, 8, 8))
    net(images())
    assert not seen


def test_a_network_is_left_in_the_modes_that_it_was_in() -> None:
    net = models.build("resnet8_0.25_a", 4).train()
    norms_of(net)[2].eval()
    modes, before = [module.training for module in net.modules()], state(net)
    with in_eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert probe(net, 8).shape == (1, 4)
    assert [module.training for module in net.modules()] == modes
    assert same(state(net), before)


def test_a_step_moves_what_the_optimisers_hold_and_leaves_no_gradient_elsewhere() -> None:
    moved, other = nn.Linear(2, 2), nn.Linear(2, 2)
    before = state(moved)
    descend(other(moved(torch.ones(1, 2))).sum(), adam(*moved.parameters(), lr=0.1))
    assert not same(state(moved), before)
    assert all(value.grad is None for value in other.parameters())


def test_an_ordinary_view_is_a_crop_with_black_around() -> None:
    torch.manual_seed(0)
    source = images(20)
    found = whole_view(source, Augment(pad=2, flip=False))
    padded = nn.functional.pad(source, (2, 2, 2, 2))
    crops = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    apart = (crops.permute(0, 2, 3, 1, 4, 5) - found[:, None, None]).abs().amax((3, 4, 5)).flatten(1)
    assert (apart.amin(1) < 1e-6).all()
    assert len(set(apart.argmin(1).tolist())) > 5


def test_an_ordinary_view_may_be_mirrored() -> None:
    torch.manual_seed(0)
    source = images(20)
    found = whole_view(source, Augment(pad=0, flip=True))
    kept, turned = ((found - x).abs().amax((1, 2, 3)) < 1e-6 for x in (source, source.flip(3)))
    assert (kept ^ turned).all()
    assert kept.any()
    assert turned.any()


def test_a_part_is_resampled_as_torch_resamples_a_crop() -> None:
    source = images(1)
    rows, columns = (inside(torch.tensor([start]), torch.tensor([6.0]), 8) for start in (1.0, 2.0))
    expected = nn.functional.interpolate(source[:, :, 1:7, 2:8], size=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(view(source, taps(rows, 8), taps(columns, 8)), expected)


def test_parts_are_of_many_places_and_keep_to_the_images_colours() -> None:
    torch.manual_seed(0)
    source = images(1).expand(30, -1, -1, -1)
    found = part_view(source, Augment(pad=0, flip=True))
    assert found.shape == source.shape
    assert len({image.numpy().tobytes() for image in found}) == 30
    assert source.min() - 1e-6 <= found.min()
    assert found.max() <= source.max() + 1e-6


@pytest.mark.parametrize("made", [whole_view, part_view])
def test_a_view_passes_gradients_on(made: type) -> None:
    source = images(2).requires_grad_()
    made(source, Augment(pad=1, flip=True)).sum().backward()
    assert source.grad is not None
    assert source.grad.abs().sum() > 0


def test_embeddings_have_length_one() -> None:
    torch.testing.assert_close(Head(6, 3)(torch.randn(4, 6)).norm(dim=1), torch.ones(4))


def test_a_memory_comes_back_from_a_checkpoint_as_long_as_it_was() -> None:
    first, second = Rows(2), Rows(2)
    first.add(torch.arange(6.0).view(3, 2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.rows, first.rows)
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({})


def test_the_bank_lets_the_oldest_go() -> None:
    bank = PairBank(1, 3)
    for value in range(5):
        bank.add(torch.tensor([[float(value)]]), torch.tensor([[10.0 * value]]))
    local, whole = bank.draw(10)
    assert sorted(local.flatten().tolist()) == [2, 3, 4]
    assert torch.equal(whole, 10 * local)
    assert len(bank.draw(2)[0]) == 2


def test_an_empty_bank_gives_nothing() -> None:
    assert [part.shape for part in PairBank(4, 3).draw(10)] == [(0, 4), (0, 4)]


def test_a_pool_gives_its_images_normalised() -> None:
    source, made = images(6), pool()
    made.add(source[:2])
    made.add(source[2:])
    batch = made.draw(6)
    colours = (source * 255).round() / 255
    mean, std = torch.tensor(made.data.mean).view(3, 1, 1), torch.tensor(made.data.std).view(3, 1, 1)
    torch.testing.assert_close(batch.images * std + mean, colours[batch.index], rtol=1e-4, atol=1e-5)
    assert sorted(batch.index.tolist()) == [0, 1, 2, 3, 4, 5]
    assert set(batch.labels.tolist()) == {-1}
    torch.testing.assert_close(made.last(3), colours[3:])


def test_a_pool_that_is_too_small_gives_images_twice() -> None:
    made = pool()
    made.add(images(2))
    assert set(made.draw(16).index.tolist()) == {0, 1}


def test_a_pools_batches_are_augmented_as_the_recipe_says() -> None:
    torch.manual_seed(0)
    made = pool(Augment(pad=2, flip=True))
    made.add(images(1))
    found = made.draw(16).images
    assert len({image.numpy().tobytes() for image in found}) > 8


def test_nobody_can_learn_from_labels_that_are_not_there() -> None:
    batch = unlabelled(images(3))
    with pytest.raises(IndexError):
        nn.functional.cross_entropy(torch.zeros(3, 4), batch.labels)


def test_a_synthesis_says_what_it_lacks() -> None:
    made = Synthesis(training_set())
    assert made.optimizers() == {}
    with pytest.raises(NotImplementedError, match="batch"):
        made.batch()
    with pytest.raises(NotImplementedError, match="pictures"):
        made.pictures()


def test_classes_are_counted_by_asking() -> None:
    assert probe(Says([0.0] * 7), 8).shape == (1, 7)


def test_a_contact_sheet_shows_every_image_in_its_place() -> None:
    source = images(5, side=40)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(source))))
    assert sheet.shape == (81, 122, 3)
    last = (source[4].permute(1, 2, 0).numpy() * 255).round()
    assert (sheet[41:81, 41:81] == last).all()
    assert (sheet[41:81, 82:] == 255).all()


def test_a_contact_sheet_enlarges_small_images_pixel_by_pixel() -> None:
    source = images(2, side=20)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(source))))
    assert sheet.shape == (60, 121, 3)
    for number, left in enumerate((0, 61)):
        shown = (source[number].permute(1, 2, 0).numpy() * 255).round()
        assert (sheet[:, left : left + 60] == np.kron(shown, np.ones((3, 3, 1)))).all()
