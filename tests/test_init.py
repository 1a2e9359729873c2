import pkgutil
from importlib import import_module
from types import ModuleType

import crisp_attention as crisp


def test_a_public_name_is_the_same_whatever_has_been_imported() -> None:
    """Importing a module puts it into the package under its own name, over what the package had there."""
    before = {name: getattr(crisp, name) for name in crisp.__all__}
    for module in pkgutil.walk_packages(crisp.__path__, "crisp_attention."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    after = {name: getattr(crisp, name) for name in crisp.__all__}
    assert after == before
    assert not [name for name, thing in after.items() if isinstance(thing, ModuleType)]
