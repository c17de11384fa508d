"""Signals end a training after its step."""

import os
import signal
import threading

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from graphprune import processes
from graphprune.engine.interrupts import Interrupted, StopAtStep


@pytest.fixture(autouse=True)
def heard():
    """Processes that a shell starts in the background ignore Ctrl-C, and so does what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def step(tmp_path):
    """What a Trainer tells its callbacks."""
    state = TrainerState(max_steps=9)
    state.global_step = 4
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, TrainerControl()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_and_saved_first(number, step, capfd):
    stop, before = StopAtStep(), signal.getsignal(number)
    with stop.listening():
        stop.on_step_end(*step)
        assert not step[2].should_save
        os.kill(os.getpid(), number)
        stop.on_step_end(*step)
        assert step[2].should_save
        with pytest.raises(Interrupted, match="stopped after step 4 of 9") as told:
            stop.on_save(*step)
    assert told.value.exit_code == 128 + number
    assert "stopping after this optimizer step" in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_to_another_process_counts(step, monkeypatch):
    stop = StopAtStep()
    monkeypatch.setattr(processes, "any_of", lambda flag: True)
    stop.on_step_end(*step)
    assert step[2].should_save
    with pytest.raises(Interrupted, match="stopped after step 4 of 9") as told:
        stop.on_save(*step)
    assert told.value.exit_code == 128 + signal.SIGTERM


def test_a_signal_that_comes_while_a_checkpoint_is_written_waits_for_the_next_step(step):
    stop = StopAtStep()
    with stop.listening():
        stop.on_step_end(*step)
        os.kill(os.getpid(), signal.SIGINT)
        stop.on_save(*step)


def test_the_second_signal_acts_at_once():
    def twice():
        with StopAtStep().listening():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as told:
        twice()
    assert type(told.value) is KeyboardInterrupt


def test_saving_goes_on_while_nobody_interrupts(step):
    stop = StopAtStep()
    with stop.listening():
        stop.on_save(*step)


def test_ignored_signals_stay_ignored(step):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopAtStep()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            stop.on_step_end(*step)
        assert not step[2].should_save
    finally:
        signal.signal(signal.SIGINT, former)


def test_other_threads_are_left_alone(step):
    errors = []

    def work():
        try:
            with StopAtStep().listening():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
