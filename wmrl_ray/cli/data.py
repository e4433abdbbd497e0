import typer

app = typer.Typer()


@app.callback()
def f():
    pass
