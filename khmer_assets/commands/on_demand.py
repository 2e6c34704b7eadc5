"""What the commands share that materialize one asset that is made on demand."""

from khmer_assets.commands.materialization import materialize
from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from resources.instance import open_instance
from resources.storage import Store, store_root


def show(asset: str, report: str) -> None:
    """Materialize the asset and print its report, the file `report`. Raises `MaterializationError`."""
    from khmer_assets.definitions import build_definitions

    materialize(build_definitions(Recipe.current()), open_instance(home()), asset)
    folder = Store(store_root(home()), home() / "cache").current(asset)
    print(f"\n{(folder / report).read_text()}\n{folder}")
