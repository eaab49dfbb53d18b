"""`wsol data`: what is on this machine, getting it, checking it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wsol_lib.types import WsolError

app = typer.Typer(help="Find, download, check and cut data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a data set; `wsol data list` shows all.")]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets. Default: $WSOL_DATA, else data/ of the checkout, else ~/.cache/wsol."),
]


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Print a mistake that the reader can mend, and leave with status 1."""
    try:
        yield
    except (WsolError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


@app.command("list")
def list_(root: Root = None) -> None:
    """Show every data set: is it here, how big is the download, what is its licence."""
    from wsol_lib.data import available, datasets
    from wsol_lib.data.fetch import is_complete, manifest
    from wsol_lib.data.source import data_root

    folder = data_root(root)
    typer.echo(f"data folder: {folder}\n{'name':15} {'here':5} {'download':>10}  licence")
    typer.echo(f"{'scenes':15} {'yes':5} {'none':>10}  drawn by the library; as the library")
    for entry in manifest().values():
        known = entry.name in datasets()
        here = available(entry.name, root) if known else any(is_complete(folder, remote) for remote in entry.files)
        by_hand = not any(remote.url for remote in entry.files)
        size = "by hand" if by_hand else f"{entry.size / 1e6:.0f} MB" if entry.size else "unknown"
        typer.echo(f"{entry.name:15} {'yes' if here else 'no':5} {size:>10}  {entry.licence}")


@app.command()
def get(
    name: Name,
    given: Annotated[
        Path | None, typer.Option("--from", help="A file, or a folder of files, to take instead of a download.")
    ] = None,
    root: Root = None,
) -> None:
    """Download a data set (going on after an interruption), check its hash, unpack it safely."""
    from wsol_lib.data import fetch
    from wsol_lib.data.source import data_root

    with _one_sentence():
        for line in fetch.get(name, data_root(root), given):
            typer.echo(line)


@app.command()
def verify(name: Name, root: Root = None) -> None:
    """Read every split of a data set, decode every picture, and name the files that are damaged."""
    from wsol_lib.data.verify import archive_hash, damaged

    with _one_sentence():
        note = archive_hash(name, root)
        bad = list(damaged(name, root))
    typer.echo(note)
    for sentence in bad:
        typer.secho(sentence, fg="red")
    typer.echo(f"{name}: {len(bad)} damaged" if bad else f"{name}: all pictures and annotations can be read")
    if bad:
        raise typer.Exit(1)


@app.command()
def where(name: Name, root: Root = None) -> None:
    """Print the folder or archive that a data set is read from."""
    from wsol_lib.data import where as place

    with _one_sentence():
        typer.echo(str(place(name, root)))


@app.command()
def subset(
    name: Annotated[str, typer.Argument(help="tiny-imagenet (200 pictures a class), cub-50 or ilsvrc-mini.")],
    out: Annotated[Path, typer.Option(help="Folder for the archive; put it into the data folder to use it.")],
    root: Root = None,
) -> None:
    """Cut a named subset from the official data (ilsvrc-mini: an even sample, not the pictures of the book)."""
    from wsol_lib.data.subsets import cut

    with _one_sentence():
        typer.echo(str(cut(name, out, root)))
