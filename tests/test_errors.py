import pytest
from torch.utils.data import DataLoader

from piip.data.images import ImageFileError
from piip.errors import ConfigError, DataError


class Broken:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise OSError("the reason: DataError: no")
        except OSError as error:
            raise self.error from error


@pytest.mark.parametrize(
    "error", [DataError("Sample 3 is too long; cut it."), ImageFileError("a.png: gone."), ConfigError("x: y")]
)
def test_a_loader_process_says_what_the_dataset_said(error):
    with pytest.raises(type(error)) as raised:
        next(iter(DataLoader(Broken(error), num_workers=1)))
    assert str(raised.value) == str(error)


def test_a_message_stays_as_it_is():
    assert str(DataError("piip.errors.DataError: nothing is cut")) == "piip.errors.DataError: nothing is cut"
