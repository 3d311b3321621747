"""`raysft chat` in a terminal, or by a script on standard input."""

import re
import sys
from typing import TYPE_CHECKING

from raysft.cli import terminal
from raysft.errors import UserError

if TYPE_CHECKING:
    from raysft.model.conversation import Talk

COMMANDS = (
    "/reset forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer; "
    "a line that ends in \\ goes on in the next"
)


def converse(talk: "Talk") -> None:
    """Until /quit or the end of the input. Answers go to standard output, all else to the other."""
    by_hand = sys.stdin.isatty()
    if by_hand:
        import readline  # noqa: F401 (input() edits lines with it)

        say(COMMANDS)
    if not talk.takes_turns:
        say("the model's template writes one question: each is asked without those before")
    while True:
        try:
            question = next_question(by_hand)
            if question is None or question in ("/quit", "/exit"):
                return
            take(talk, question)
        except KeyboardInterrupt:  # at the prompt, or a second one while an answer is computed
            if not by_hand:
                raise
            print()


def take(talk: "Talk", question: str) -> None:
    """A line of the person's: a command, or a question to answer."""
    if question == "/reset":
        talk.reset()
        say("forgotten")
    elif re.fullmatch(r"/\w+", question):
        say(f"no such command; {COMMANDS}")
    elif question:
        answer(talk, question)


def say(words: str) -> None:
    terminal.stderr.print(f"[dim]{words}[/]", soft_wrap=not terminal.stderr.is_terminal)


def next_question(by_hand: bool) -> str | None:
    """None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = typed("... " if lines else "> ") if by_hand else sys.stdin.readline()
        except EOFError:
            print()
            line = ""
        lines.append(line.rstrip("\n"))
        if not line:
            return "\n".join(lines).strip() or None
        if not lines[-1].endswith("\\"):
            return "\n".join(lines).strip()
        lines[-1] = lines[-1][:-1]


def typed(prompt: str) -> str:
    """A line, with its end. Raises EOFError."""
    if sys.stdout.isatty():
        return input(prompt) + "\n"
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input() + "\n"


def answer(talk: "Talk", question: str) -> None:
    """Streamed. Ctrl-C ends it after its next token; a second one where that takes long."""
    from raysft.runtime.interrupt import first_interrupt

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    try:
        with first_interrupt() as interrupted:
            reply = talk.ask(question, write, interrupted.is_set)
    except UserError as error:
        terminal.error(str(error))
        return
    print(flush=True)
    if reply.left_out:
        turns = "the oldest turn is" if reply.left_out == 1 else f"the {reply.left_out} oldest are"
        say(f"the context of {talk.positions:,} tokens is full: {turns} left out")
    if reply.finish == "interrupted":
        say("stopped")
    elif reply.finish == "length":
        asked = reply.tokens >= talk.how.max_new_tokens
        why = "that is --max-new-tokens" if asked else "the context is full"
        say(f"cut after {reply.tokens:,} tokens: {why}")
