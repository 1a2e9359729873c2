import pkgutil
from types import ModuleType

import crisp_attention as crisp


def test_a_public_name_is_the_same_whatever_has_been_imported() -> None:
    """Importing a module puts it into the package under its own name, over what the package had there."""
    modules = {module.name for module in pkgutil.iter_modules(crisp.__path__)}
    assert {"errors", "models"} <= modules
    assert not modules & set(crisp.__all__)
    assert not [name for name in crisp.__all__ if isinstance(getattr(crisp, name), ModuleType)]
