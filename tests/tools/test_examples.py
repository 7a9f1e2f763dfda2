"""The runnable examples under docs/examples."""

import runpy


def test_layer_example_learns_its_scene(repository, capsys):
    loss, z, z_true = runpy.run_path(str(repository / "docs/examples/layer.py"))["main"]()
    assert loss == 0 and (z == z_true).all()
    assert "segments" in capsys.readouterr().out
