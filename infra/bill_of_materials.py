"""What is in a binary: its packages as a CycloneDX bill of materials, and their licences as one text.

Both come from `cargo metadata`, so they hold the packages that a binary is built from for its target, and no others.
Nothing in them depends on when or where they were made.
"""

import hashlib
import json
import os
import subprocess
import tomllib

# The beginnings of the names of files with a licence or a notice.
LICENCE_FILES = ("license", "licence", "copying", "notice", "copyright", "unlicense")
MAX_LICENCE_BYTES = 200_000


def graph(root, package, target):
    """Returns the packages that a package of the workspace is built from for a target, itself first."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    packages = {one["id"]: one for one in metadata["packages"]}
    nodes = {one["id"]: one for one in metadata["resolve"]["nodes"]}
    (own,) = (one["id"] for one in metadata["packages"] if one["name"] == package and one["source"] is None)
    found, waiting = [], [own]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        found.append(one)
        for dependency in nodes[one]["deps"]:
            # What tests need is not in the binary. What builds it is: it may generate code.
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    with open(os.path.join(root, "Cargo.lock"), "rb") as file:
        locked = {(one["name"], one["version"]): one.get("checksum") for one in tomllib.load(file)["package"]}
    first, *others = (packages[one] for one in found)
    ordered = [first, *sorted(others, key=lambda one: (one["name"], one["version"]))]
    return [{**one, "checksum": locked.get((one["name"], one["version"]))} for one in ordered]


def component(package, kind):
    """Returns a package as a component of a bill of materials."""
    url = f"pkg:cargo/{package['name']}@{package['version']}"
    one = {"type": kind, "bom-ref": url, "name": package["name"], "version": package["version"], "purl": url}
    if package["license"]:
        one["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if package["checksum"]:
        one["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
    if package["repository"]:
        one["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return one


def bill(packages):
    """Returns the CycloneDX bill of materials of a binary."""
    first, *others = packages
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(first, "application")},
        "components": [component(one, "library") for one in others],
    }


def licence_texts(package):
    """Yields the texts of a package's licence files."""
    folder = os.path.dirname(package["manifest_path"])
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.lower().startswith(LICENCE_FILES) and os.path.isfile(path):
            if os.path.getsize(path) <= MAX_LICENCE_BYTES:
                with open(path, encoding="utf-8", errors="replace") as file:
                    yield file.read().strip()


def notices(packages):
    """Returns the notices of all packages from elsewhere, each text once with the packages that it belongs to."""
    texts, owners = {}, {}
    outside = [one for one in packages if one["source"]]
    for package in outside:
        for text in licence_texts(package):
            key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            texts.setdefault(key, text)
            owners.setdefault(key, []).append(f"{package['name']} {package['version']}")
    lines = ["This program contains the following packages, under the licences that they name.", ""]
    for package in outside:
        lines.append(f"{package['name']} {package['version']}: {package['license'] or 'see below'}")
    for key, text in texts.items():
        lines += ["", "-" * 80, ", ".join(owners[key]), "", text]
    return "\n".join(lines) + "\n"
