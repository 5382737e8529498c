"""Autoencoders on the Hugging Face hub, in SAELens' layout: a folder in a repository for each.

Needs huggingface_hub (`pip install -e '.[hub]'`). HF_ENDPOINT and HF_TOKEN mean what they mean there.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from sae import interop
from sae.core.model import Sae
from sae.core.text import nearest
from sae.core.types import UserError

T = TypeVar("T")
WORD = r"[A-Za-z0-9_][\w.-]*"  # of a path: never "." or ".."
PLACE = re.compile(rf"hf:({WORD}/{WORD})((?:/{WORD})*)(?:@([\w./-]+))?", re.ASCII)


def load_pretrained(place: str | Path, cache_dir: str | Path | None = None) -> Sae:
    """An autoencoder of another library: a folder, or "hf:OWNER/NAME[/FOLDER][@REVISION]" on the hub.

    FOLDER may be left out where the repository holds one autoencoder; REVISION is a branch, a tag or a commit, main if
    not given. Files go to huggingface_hub's cache, or to `cache_dir`. A folder needs no network. Raises UserError.
    """
    if not str(place).startswith("hf:"):
        return interop.load(place)
    repo, folder, revision = parsed(str(place))
    hub = _hub()
    api = hub.HfApi(endpoint=endpoint())
    info = _asked(hub, place, lambda: api.model_info(repo, revision=revision, files_metadata=False))
    commit, names = str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or ()]
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise UserError(f"{place}: got no commit of the repository, allowed: what the hub answers")
    found = folders(names)
    if not folder and len(found) == 1:
        folder = next(iter(found))
    if folder not in found:
        there = nearest(folder, sorted(found)) if found else "it holds none in a format of sae.interop"
        raise UserError(f"{place}: got {f'no autoencoder {folder!r}' if folder else 'no folder'}; {there}")
    format = found[folder]
    for file in (interop.FORMATS[format].SETTINGS, interop.FORMATS[format].WEIGHTS):
        name = f"{folder}/{file}" if folder else file
        get = lambda name=name: hub.hf_hub_download(
            repo, name, revision=commit, endpoint=endpoint(), cache_dir=None if cache_dir is None else str(cache_dir)
        )
        path = Path(_asked(hub, place, get))
    return interop.load(path.parent, format)


def push(
    folder: str | Path, repo: str, names: Iterable[str], *, private: bool = False, revision: str | None = None
) -> str:
    """Upload autoencoders, the folders `names` in `folder`, to a repository -> the commit.

    The repository is made if it is not there, and gets the first one's card as its own where it has none. Cards say how
    to load from the repository. Raises UserError.
    """
    if not re.fullmatch(rf"{WORD}/{WORD}", repo, re.ASCII):
        raise UserError(f"repository: got {repo!r}, allowed: OWNER/NAME")
    names, hub = list(names), _hub()
    for name in names:
        if not re.fullmatch(WORD, name, re.ASCII):
            raise UserError(f"folder: got {name!r}, allowed: letters, digits and _.-")
    for name in names:
        card = Path(folder) / name / interop.CARD
        text = card.read_text(encoding="utf-8")
        text = text.replace(f'SAE.load_from_disk("{name}")', f'SAE.from_pretrained("{repo}", "{name}")')
        text = text.replace(f'sae.interop.load("{name}")', f'sae.load_pretrained("hf:{repo}/{name}")')
        card.write_text(text, encoding="utf-8")
    api = hub.HfApi(endpoint=endpoint())
    _asked(hub, repo, lambda: api.create_repo(repo, private=private or None, exist_ok=True))
    there = _asked(hub, repo, lambda: api.model_info(repo)).siblings or ()
    card = Path(folder) / interop.CARD
    if interop.CARD not in [sibling.rfilename for sibling in there] and not card.exists():
        card.write_bytes((Path(folder) / names[0] / interop.CARD).read_bytes())
    message = f"Add {', '.join(names)}"
    upload = lambda: api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message, revision=revision)
    return str(_asked(hub, repo, upload).oid)


def parsed(place: str) -> tuple[str, str, str | None]:
    """ "hf:OWNER/NAME/FOLDER@REVISION" -> (repository, folder or "", revision or None). Raises UserError."""
    match = PLACE.fullmatch(place)
    if match is None or ".." in place:
        raise UserError(f"got {place!r}, allowed: hf:OWNER/NAME, hf:OWNER/NAME/FOLDER, each with @REVISION or without")
    return match[1], match[2].strip("/"), match[3]


def folders(names: Iterable[str]) -> dict[str, str]:
    """{folder: format} of the autoencoders among the files of a repository; "" is its root."""
    found: dict[str, str] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        formats = [format for format, module in interop.FORMATS.items() if module.WEIGHTS == file]
        if formats and (not folder or re.fullmatch(rf"{WORD}(/{WORD})*", folder, re.ASCII)):
            found[folder] = formats[0]
    return found


def endpoint() -> str | None:
    """The hub's address, where HF_ENDPOINT names one; read when it is needed, not when huggingface_hub is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError("the hub needs huggingface_hub; pip install -e '.[hub]', or load from a folder") from None


def _asked(hub: Any, what: str | Path, call: Callable[[], T]) -> T:
    """What the hub answers. Raises UserError, one line, where it does not."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return call()
    except errors.GatedRepoError:
        raise UserError(f"{what}: the repository asks for consent; give it on its page, then set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: the repository has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{what}: no such repository, or HF_TOKEN does not open it") from None
    except Exception as error:  # of httpx, of requests in older versions, of the file system
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what}: the hub did not answer as asked: {reason}{advice}") from None
