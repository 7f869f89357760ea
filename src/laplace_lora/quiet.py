"""Other libraries' notes, silenced where everything that they say is checked or known here."""

from transformers.utils import logging


class quiet_transformers:
    """Silence transformers' notes, on a freshly made head for one; put its level back after."""

    def __enter__(self) -> None:
        """Silence."""
        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        """Put the level back."""
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
