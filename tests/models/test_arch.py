"""The published architectures as data: counts, costs, depths, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vntools.models.arch import ARCHITECTURES, Architecture

# Deploy form: parameters in M, GMACs at 224x224.
COUNTED = {
    "vanillanet_5": (15.52, 5.16),
    "vanillanet_6": (32.51, 5.99),
    "vanillanet_7": (32.80, 6.89),
    "vanillanet_8": (37.10, 7.74),
    "vanillanet_9": (41.40, 8.58),
    "vanillanet_10": (45.69, 9.42),
    "vanillanet_11": (49.99, 10.26),
    "vanillanet_12": (54.29, 11.10),
    "vanillanet_13": (58.59, 11.94),
    "vanillanet_13_x1_5": (127.80, 26.55),
    "vanillanet_13_x1_5_ada_pool": (127.80, 48.98),
}


def test_all_eleven_are_there() -> None:
    assert list(ARCHITECTURES) == list(COUNTED)
    assert all(name == arch.name for name, arch in ARCHITECTURES.items())


@pytest.mark.parametrize("name", COUNTED)
def test_deploy_form_counts(name: str) -> None:
    arch = ARCHITECTURES[name]
    counted = (arch.deploy_parameters() / 1e6, arch.deploy_macs() / 1e9)
    assert tuple(round(n, 2) for n in counted) == COUNTED[name]


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_table_1(name: str) -> None:
    arch = ARCHITECTURES[name]
    assert arch.published is not None
    assert arch.deploy_parameters() / 1e6 == pytest.approx(
        arch.published.parameters_m, abs=0.06
    )
    assert arch.deploy_macs() / 1e9 == pytest.approx(arch.published.flops_g, abs=0.1)


def test_appendix_pooling_sizes_do_not_give_table_1() -> None:
    arch = replace(
        ARCHITECTURES["vanillanet_13_x1_5_ada_pool"],
        adaptive=(0, 40, 20, 0, 0, 0, 0, 0, 0, 10, 0),
    )
    assert arch.published is not None
    assert arch.deploy_macs() / 1e9 != pytest.approx(arch.published.flops_g, abs=1)


def test_training_form_counts() -> None:
    arch = ARCHITECTURES
    assert round(arch["vanillanet_13"].training_parameters() / 1e6, 2) == 107.70
    gmacs = {n: round(arch[f"vanillanet_{n}"].training_macs() / 1e9, 2) for n in (5, 6, 13)}
    assert gmacs == {5: 8.45, 6: 10.10, 13: 21.81}


def test_depth_is_in_the_name() -> None:
    depths = {a.name.split("_")[1]: a.depth for a in ARCHITECTURES.values()}
    assert depths == {str(depth): depth for depth in range(5, 14)}


def test_crop_ratio_is_that_of_table_8() -> None:
    wide = {a.name for a in ARCHITECTURES.values() if a.crop_ratio == 0.95}
    assert wide == {n for n in COUNTED if n.startswith(("vanillanet_12", "vanillanet_13"))}
    assert {a.crop_ratio for a in ARCHITECTURES.values()} == {0.875, 0.95}


def test_map_sizes() -> None:
    assert ARCHITECTURES["vanillanet_6"].map_sizes() == (56, 28, 14, 7, 7)
    assert ARCHITECTURES["vanillanet_6"].map_sizes(64) == (16, 8, 4, 2, 2)
    adaptive = ARCHITECTURES["vanillanet_13_x1_5_ada_pool"].map_sizes()
    assert adaptive == (75, 75, 38, 19, 19, 19, 19, 19, 19, 19, 10, 10)


def test_macs_grow_with_the_image() -> None:
    arch = ARCHITECTURES["vanillanet_5"]
    head = arch.dims[-1] * arch.num_classes
    assert arch.deploy_macs(448) - head == 4 * (arch.deploy_macs(224) - head)


@pytest.mark.parametrize("size", [3, 8, 31])
def test_an_image_too_small_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="too small"):
        ARCHITECTURES["vanillanet_5"].map_sizes(size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": (2,)},
        {"strides": (2, 2, 1)},
        {"dims": ()},
        {"dims": (8, 0, 8)},
        {"strides": (2, 0)},
        {"adaptive": (4,)},
        {"adaptive": (4, 4)},
        {"adaptive": (-1, 0)},
        {"stem_padding": -1},
        {"stem_stride": 0},
        {"activation_n": -1},
        {"num_classes": 0},
        {"image_size": 0},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    fitting: dict[str, object] = {"dims": (8, 8, 8), "strides": (2, 1)}
    assert Architecture("own", **fitting).depth == 4  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"need|must|cannot|no adaptive"):
        Architecture("own", **fitting | wrong)  # pyright: ignore[reportArgumentType]
