"""The log of a study."""

import logging

from graphprune.study.log import log_file, quiet_engine


def test_the_file_has_everything_and_the_level_is_as_it_was(tmp_path):
    logger = logging.getLogger("graphprune")
    level, handlers = logger.level, list(logger.handlers)
    with log_file(tmp_path, 0):
        logging.getLogger("graphprune.engine.callback").info("an event")
        try:
            raise ValueError("a surprise")
        except ValueError:
            logging.getLogger("graphprune.study.cell").exception("failed")
    text = (tmp_path / "study.log").read_text()
    assert "INFO graphprune.engine.callback: an event" in text and "ValueError: a surprise" in text
    assert (logger.level, logger.handlers) == (level, handlers)


def test_every_process_has_a_file_of_its_own(tmp_path):
    with log_file(tmp_path, 2):
        logging.getLogger("graphprune").warning("here")
    assert [f.name for f in tmp_path.iterdir()] == ["study-2.log"]


def test_on_the_terminal_there_is_the_grid_and_what_is_wrong(tmp_path):
    class Lines(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    seen, handler = [], Lines()
    logger = logging.getLogger("graphprune")
    logger.addHandler(handler)
    try:
        with log_file(tmp_path, 0), quiet_engine():
            logging.getLogger("graphprune.engine.callback").info("an event")
            logging.getLogger("graphprune.engine.callback").warning("something odd")
            logging.getLogger("graphprune.study.progress").info("a cell")
            logging.getLogger("graphprune.study.cell").info("a trace", exc_info=ValueError())
        logging.getLogger("graphprune.engine.callback").error("after")
    finally:
        logger.removeHandler(handler)
    assert seen == ["something odd", "a cell", "after"]
    assert "an event" in (tmp_path / "study.log").read_text()
