"""Where a video model is told which shape it has to draw."""

import torch

from ertacache_zoo import clips, shape_map


def test_each_latent_position_within_a_movers_box_has_its_shape():
    drawn = clips.sample(12, 4, "train")
    _, paths = clips.render_with_paths(drawn, 2)
    found, which = shape_map.shape_map(drawn, paths), shape_map.mover_map(drawn, paths)
    assert found.shape == which.shape == (12, 3, 12, 12)
    for n, clip in enumerate(drawn):
        for frame, group in enumerate(([0], [1, 2, 3, 4], [5, 6, 7, 8])):
            for row in range(12):
                for column in range(12):
                    expected = place = shape_map.NOWHERE
                    for number, (mover, path) in enumerate(zip(clip.movers, paths[n].tolist(), strict=True)):
                        right = sum(path[at][0] for at in group) / len(group)
                        down = sum(path[at][1] for at in group) / len(group)
                        if max(abs(4 * column + 2 - right), abs(4 * row + 2 - down)) < mover.extent:
                            expected, place = clips.SHAPES.index(mover.shape), number
                    assert int(found[n, frame, row, column]) == expected
                    assert int(which[n, frame, row, column]) == place
    shown = [{clips.SHAPES.index(mover.shape) for mover in clip.movers} | {shape_map.NOWHERE} for clip in drawn]
    assert [set(part.flatten().tolist()) for part in found] == shown


def test_an_error_within_a_mover_counts_more_the_less_noise_there_is():
    shapes = torch.full((3, 1, 1, 2), shape_map.NOWHERE)
    shapes[..., 1] = 0
    weight = shape_map.emphasis(shapes, torch.tensor([1.0, 0.25, 0.0]))
    assert weight.shape == (3, 1, 1, 1, 2)
    most = 1 + shape_map.EMPHASIS
    assert weight.flatten().tolist() == [1, 1, 1, 1 + 0.75 * shape_map.EMPHASIS, 1, most]
