"""``latticework federate serve|join``: Flower's processes for real parties."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

federate_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train with other parties over Flower: one serves, the others join."
)
Authority = Annotated[Path | None, typer.Option("--ca", help="PEM file of who signed the server's certificate.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS beyond this machine, on a network that is trusted.")]


@federate_app.command(epilog="Example: latticework federate serve fed-pub agreed/ --clients 4 -s rounds=50 -o rounds.json")
def serve(
    method: Annotated[str, typer.Argument(help="fed-pub, fedavg, fedprox … with its preset or fields.")],
    agreed: Annotated[
        Path, typer.Argument(help="A graph folder with the agreed feature columns and classes; only these are read.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the report of the rounds goes (JSON).")],
    settings: Annotated[list[str], typer.Option("-s", "--set", metavar="FIELD=VALUE", help="A field of the method.")] = [],
    clients: Annotated[int, typer.Option(help="Start when so many are there.", min=1)] = 2,
    wait: Annotated[float, typer.Option(help="Seconds to wait for them; then it starts with those who came.", min=1)] = 600,
    timeout: Annotated[float, typer.Option(help="Seconds a round waits for answers.", min=1)] = 120,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 9092,
    seed: Annotated[int, typer.Option(help="Seed of all draws, the random graph's too.", min=0)] = 0,
    ca: Authority = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    insecure: Insecure = False,
) -> None:
    """Serve the rounds of a federated method to parties that join."""
    from latticework.core.errors import UserError
    from latticework.core.grid import entry_of
    from latticework.nodes.federated import FederatedMethod
    from latticework.nodes.federated_processes import Rules, Terms, Tls
    from latticework.nodes.federated_processes import serve as serve_rounds

    from .verbs import _settings

    value: Any = entry_of(method)
    if not isinstance(value, FederatedMethod) or not value.sends:
        raise UserError(f"{value.name} sends nothing between clients and server; serve fed-pub, fedavg or fedprox")
    given = _settings(settings)
    value = value.with_settings(given) if given else value
    terms = Terms(value, seed=seed, **_agreed(agreed))
    report = serve_rounds(
        terms, Rules(clients, wait, timeout), out, host=host, port=port, tls=Tls(ca, cert, key), insecure=insecure, say=_say
    )
    print(f"wrote {out}: {len(report['rounds'])} rounds with {len(report['clients'])} clients; each has its own model")


@federate_app.command(epilog="Example: latticework federate join my-graph/ --server 127.0.0.1:9092 --name bank-a -o MODEL")
def join(
    graph: Annotated[Path, typer.Argument(help="Your graph folder (edges.csv, nodes.csv); it stays here.")],
    server: Annotated[str, typer.Option(help="HOST:PORT of who serves.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where your own model goes.")],
    name: Annotated[str, typer.Option(help="Your name in the model; it is not sent. Left out: the folder's.")] = "",
    ca: Authority = None,
    insecure: Insecure = False,
) -> None:
    """Take part with your own graph. The server's code runs here: join only whom you trust."""
    from latticework.nodes.federated_processes import Tls
    from latticework.nodes.federated_processes import join as join_rounds

    from .verbs import _fresh

    _fresh(out)
    join_rounds(graph, server, out, name or graph.resolve().name, tls=Tls(ca), insecure=insecure, say=_say)


def _agreed(path: Path) -> dict[str, Any]:
    """Feature columns and classes of a graph, or of several clients' graphs, and whether the columns are bags of words."""
    from latticework.core.dataset import open_data
    from latticework.core.errors import UserError
    from latticework.data.graph import bags_of

    given = open_data(path)
    if given.kind not in ("graph", "clients"):
        raise UserError(f"{path} holds {given.kind}; the agreed columns are those of a graph folder")
    held = given.read()
    if not held.features or len(held.classes) < 2:
        raise UserError(f"{path} has {len(held.features)} feature columns and {len(held.classes)} classes; parties agree on both")
    bags = all(map(bags_of, getattr(held, "graphs", (held,))))
    return {"features": tuple(held.features), "classes": tuple(held.classes), "bags": bags}


def _say(text: str) -> None:
    print(text, flush=True)
