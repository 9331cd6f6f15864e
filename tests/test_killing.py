"""A real process is killed while it trains, and continued."""

from killing import kill_often


def test_killed_training_ends_with_the_bits_of_training_left_alone():
    """Two kills at random moments, one while a checkpoint is being written; ``killing.py`` does fifty."""
    during_save, killed = kill_often(3, steps=120)
    assert killed == 3
    assert during_save == 1
