"""What the commands share that materialize one asset that is made on demand."""

from khmer_assets.commands.materialization import materialize
from khmer_assets.commands.steps import current
from khmer_assets.foundation.home import home
from resources.storage import Store, store_root


def show(asset: str, report: str) -> None:
    """Materialize the asset and print its report, the file `report`. Raises `MaterializationError`."""
    materialize(current, home(), asset)
    folder = Store(store_root(home()), home() / "cache").current(asset)
    print(f"\n{(folder / report).read_text()}\n{folder}")
