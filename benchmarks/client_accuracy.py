"""How exactly, and at what cost, load clients measure a server with a known schedule, side by side.

The server (schedule_server.py) answers with the first token 50 ms after arrival and one more every 10 ms,
100 in all: TTFT is 50 ms, TPOT 10 ms, e2e 1,040 ms, the throughput 96 tok/s per stream. Latencies are
judged by what the server says that it really did: what is left of an error is the client's, and the way's
between the two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from load_clients import OTHERS, Client, Native, NativeAtRate, Other, SglangRust
from schedule_server import E2E_S, TOKENS, Pair, ScheduleServer, running

EXAMPLES = """examples:
  python benchmarks/client_accuracy.py
  python benchmarks/client_accuracy.py --concurrency 64 --waves 10 --json
  python benchmarks/client_accuracy.py --tokenizer ./tokenizer     with the other clients

Other clients are run where they are found: genai-bench, guidellm and aiperf on the PATH or by the environment
variables GENAI_BENCH, GUIDELLM and AIPERF, SGLang's client by SGLANG_PYTHON. They need a tokenizer's folder.
"""
GOAL_ERRORS = {64: 2.0, 256: 5.0}  # percent, by concurrency
GOAL_CPU = 0.5  # of what the best of the three others uses that are load clients and nothing else
GOAL_CPU_RUST = 1.0  # of what SGLang's uses, which is not written in Python
GOAL_AROUND_S = 0.3  # before the first request and after the last token
_OTHERS = {client.name for client in OTHERS}


@dataclass(frozen=True)
class Row:
    """One line of the table; errors in percent of what the server did, `others_busy` a share of all CPUs.

    The CPU time per token is all of the native client's, its preparing and reading included, and what the
    others use from the first request to the last token; `cpu_around_s` is what they use beside that.
    """

    client: str
    load: int
    ttft_excess_ms: Pair
    ttft_error_percent: Pair
    tpot_error_percent: Pair
    e2e_error_percent: Pair
    throughput_error_percent: float
    failed: int
    cpu_ms_per_1000_tokens: float
    cpu_around_s: float
    before_first_request_s: float
    after_last_token_s: float
    server_late_ms: float
    others_busy: float
    client_limit: str | None

    @property
    def worst_error_percent(self) -> float:
        """The largest of all errors, of means and 99th percentiles."""
        pairs = (self.ttft_error_percent, self.tpot_error_percent, self.e2e_error_percent)
        return max(map(abs, (*(value for pair in pairs for value in pair), self.throughput_error_percent)))


def compare(client: Client, server: ScheduleServer, load: int, waves: int) -> Row:
    """Lets a client measure the server; says by how much it is wrong."""
    busy, started_s = _busy_s(), perf_counter()
    seen = client.measure(server.url, load, waves)
    ended_s = perf_counter()
    busy_s, all_s = (now - before for now, before in zip(_busy_s(), busy, strict=True))
    truth = server.account()
    ttft_s, tpot_s, e2e_s = truth.latencies_s(load * waves)
    used_s = seen.cpu[-1][1] - seen.cpu[0][1]
    within_s = used_s
    if isinstance(client, Other):
        within_s = seen.cpu_until_s(truth.last_token_s) - seen.cpu_until_s(truth.first_arrival_s)
    requests_s = load if client.keeps_rate else load / E2E_S
    return Row(
        client=client.name,
        load=load,
        ttft_excess_ms=(1e3 * (seen.ttft_s[0] - ttft_s[0]), 1e3 * (seen.ttft_s[1] - ttft_s[1])),
        ttft_error_percent=_percent(seen.ttft_s, ttft_s),
        tpot_error_percent=_percent(seen.tpot_s, tpot_s),
        e2e_error_percent=_percent(seen.e2e_s, e2e_s),
        throughput_error_percent=100 * (seen.output_tok_s / (requests_s * TOKENS) - 1),
        failed=seen.failed,
        cpu_ms_per_1000_tokens=1e6 * within_s / truth.tokens,
        cpu_around_s=used_s - within_s,
        before_first_request_s=truth.first_arrival_s - started_s,
        after_last_token_s=ended_s - truth.last_token_s,
        server_late_ms=1e3 * truth.lateness_mean_s,
        others_busy=max(busy_s - used_s - truth.cpu_s, 0.0) / all_s,
        client_limit=seen.limit,
    )


def _percent(seen: Pair, right: Pair) -> Pair:
    return 100 * (seen[0] / right[0] - 1), 100 * (seen[1] / right[1] - 1)


def _busy_s() -> Pair:
    """CPU time that this machine has spent at work, and all that it had."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / 100, sum(ticks) / 100


HEADINGS = """\
                TTFT excess ms  TPOT error %   e2e error %  tok/s        CPU ms/ CPU s before  after late busy
client      C/R   mean    p99   mean    p99   mean    p99   err % failed  1k tok round  1st s last s   ms    %
"""


def line(row: Row) -> str:
    """The row as the table shows it, with what it says of itself beneath."""
    cells = [f"{row.client:11}{row.load:4}"]
    for mean, p99 in (row.ttft_excess_ms, row.tpot_error_percent, row.e2e_error_percent):
        cells.append(f"{mean:7.2f}{p99:7.2f}")
    cells.append(f"{row.throughput_error_percent:8.2f}{row.failed:7}{row.cpu_ms_per_1000_tokens:8.1f}")
    cells.append(f"{row.cpu_around_s:6.1f}{row.before_first_request_s:7.2f}{row.after_last_token_s:7.2f}")
    cells.append(f"{row.server_late_ms:5.2f}{100 * row.others_busy:5.0f}")
    mark = f"\n                the client was the limit: {row.client_limit}" if row.client_limit else ""
    return "".join(cells) + mark


@dataclass(frozen=True)
class Goal:
    """What is aimed at, and what was measured."""

    goal: str
    most: float
    seen: float

    @property
    def kept(self) -> bool:
        """Whether it was reached in this run."""
        return self.seen <= self.most


def goals(rows: Sequence[Row]) -> Iterator[Goal]:
    """The goals that these rows tell of; ratios are of rows of the same run."""
    ours = [row for row in rows if row.client == Native.name]
    for row in ours:
        if row.load in GOAL_ERRORS:
            yield Goal(
                f"worst error at {row.load} streams, %", GOAL_ERRORS[row.load], row.worst_error_percent
            )
    for row in ours:
        others = [other for other in rows if other.load == row.load and other.client in _OTHERS]
        rust = [other for other in others if other.client == SglangRust.name]
        for most, rivals in (
            (GOAL_CPU, [other for other in others if other not in rust]),
            (GOAL_CPU_RUST, rust),
        ):
            if rivals:
                best = min(rivals, key=lambda other: other.cpu_ms_per_1000_tokens)
                ratio = row.cpu_ms_per_1000_tokens / best.cpu_ms_per_1000_tokens
                yield Goal(f"CPU per token at {row.load} streams, to {best.client}'s", most, ratio)
    if ours:
        around_s = max(row.before_first_request_s + row.after_last_token_s for row in ours)
        yield Goal("before the first request and after the last token, s", GOAL_AROUND_S, around_s)


def main() -> None:
    """Prints the table, and which goals it keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 4, 16, 64, 256],
        metavar="C",
        help="parallel streams",
    )
    parser.add_argument("--waves", type=int, default=4, help="requests per stream (%(default)s)")
    parser.add_argument(
        "--rate", type=int, nargs="*", default=[5, 50, 200], metavar="R", help="requests/s of an open loop"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, which the other clients need")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    options = parser.parse_args()

    clients: list[Client] = [Native(), NativeAtRate()]
    for other in OTHERS:
        if other.program() is None:
            print(f"{other.name}: not installed", file=sys.stderr)
        elif options.tokenizer is None:
            print(f"{other.name}: installed, but left out for want of --tokenizer", file=sys.stderr)
        else:
            clients.append(other(options.tokenizer))
    if not options.json:
        print(HEADINGS, end="")
    rows = []
    with running() as server:
        Native().measure(server.url, 1, 1)  # what a process does once is no cost of a load level
        server.account()
        for client in clients:
            for row in measured(
                client, server, options.rate if client.keeps_rate else options.concurrency, options.waves
            ):
                rows.append(row)
                print(json.dumps(asdict(row)) if options.json else line(row), flush=True)
    for goal in goals(rows):
        if options.json:
            print(json.dumps(asdict(goal) | {"kept": goal.kept}))
        else:
            print(f"{'kept' if goal.kept else 'MISSED':7}{goal.seen:8.2f} of {goal.most:<5g}{goal.goal}")


def measured(client: Client, server: ScheduleServer, loads: Iterable[int], waves: int) -> Iterator[Row]:
    """A row for each load; what fails is said, and left out."""
    for load in loads:
        try:
            yield compare(client, server, load, waves)
        except (subprocess.SubprocessError, ValueError, KeyError, OSError) as failure:
            output = getattr(failure, "output", None) or b""
            print(f"{client.name} at {load}: {failure}\n{output.decode(errors='replace')}", file=sys.stderr)
            server.account()


if __name__ == "__main__":
    main()
