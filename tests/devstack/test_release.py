"""The parts of a release that need no compiler: zips, bill of materials, notices, template, Terraform module.

    python -m unittest discover -s tests/devstack
"""

import glob
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import tomllib
import unittest
import zipfile
from unittest import mock

import hcl2

import deploy
import sam_template
from template_case import ROUTES, TEMPLATE, TemplateCase

INFRA = os.path.dirname(TEMPLATE)
ROOT = os.path.join(INFRA, "..")
sys.path.insert(0, INFRA)

import bill_of_materials  # noqa: E402
import release_template  # noqa: E402

LOADER = importlib.machinery.SourceFileLoader("release", os.path.join(INFRA, "release"))
release = importlib.util.module_from_spec(importlib.util.spec_from_loader("release", LOADER))
LOADER.exec_module(release)


def zips_of(architecture, digest="0" * 16):
    """Returns the names of a release's zips by binary."""
    return {name: f"{name}-{architecture}-{digest}.zip" for name in release.FUNCTIONS}


class Zips(unittest.TestCase):
    def test_zip_depends_on_its_files_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("one.zip", "two.zip")]
            files = [("bootstrap", b"program" * 1000, True), ("LICENSE", b"text", False)]
            release.write_zip(paths[0], files)
            os.utime(paths[0], (0, 0))
            release.write_zip(paths[1], list(reversed(files)))
            self.assertEqual(release.digest(paths[0]), release.digest(paths[1]))
            with zipfile.ZipFile(paths[0]) as archive:
                modes = {one.filename: one.external_attr >> 16 & 0o777 for one in archive.infolist()}
                self.assertEqual(modes, {"LICENSE": 0o644, "bootstrap": 0o755})
                self.assertEqual({one.date_time for one in archive.infolist()}, {release.DATE})

    def test_every_function_of_the_template_is_released(self):
        source = sam_template.load(TEMPLATE)
        binaries = {source["Resources"][name]["Metadata"]["BuildProperties"]["Binary"] for name in ROUTES}
        self.assertEqual(set(release.FUNCTIONS), binaries)

    def test_no_release_has_the_items_of_a_later_one(self):
        feature = "later-release"
        with open(os.path.join(ROOT, "shared", "Cargo.toml"), "rb") as file:
            self.assertEqual(tomllib.load(file)["features"], {feature: []}, "on by name alone")
        manifests = glob.glob(os.path.join(ROOT, "functions", "*", "Cargo.toml"))
        self.assertEqual(len(manifests), len(release.FUNCTIONS))
        builders = [os.path.join(INFRA, "release"), os.path.join(INFRA, "mandate", "Cargo.toml"), TEMPLATE]
        builders += [os.path.join(ROOT, name) for name in ("Cargo.toml", ".cargo/config.toml")]
        for path in manifests + builders:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            for word in (feature, "--features", "--all-features", "CargoLambdaFlags"):
                self.assertNotIn(word, text, path)

    def test_release_refuses_a_folder_with_files_of_another(self):
        with tempfile.TemporaryDirectory() as folder:
            stale = os.path.join(folder, "incident-fetch-arm64-0000000000000000.zip")
            with open(stale, "wb"):
                pass
            command = (sys.executable, os.path.join(INFRA, "release"), "--arch", "arm64", "--out", folder)
            # Without a PATH it finds no tool, so that it would also end here without the refusal.
            run = subprocess.run(command, env={}, stderr=subprocess.PIPE, text=True, check=False)
            self.assertEqual((run.returncode, run.stderr.count("is not empty")), (1, 1), run.stderr)
            self.assertEqual(os.listdir(folder), [os.path.basename(stale)])

    def test_build_hides_the_paths_of_its_machine(self):
        environment = release.build_environment("/somewhere/else")
        for variable in ("RUSTFLAGS", "CFLAGS"):
            for folder in (release.ROOT, "/somewhere/else", "cargo", "toolchains"):
                self.assertIn(folder, environment[variable], variable)


class Operator(unittest.TestCase):
    @staticmethod
    def program(*kinds, magic=b"\x7fELF\x02\x01"):
        """An ELF file with program headers of these types."""
        header = magic + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, len(kinds)) + bytes(6)
        return header + b"".join(struct.pack("<I", kind) + bytes(52) for kind in kinds)

    def test_program_with_a_dynamic_linker_is_not_static(self):
        load, dynamic, interpreter = 1, 2, 3
        self.assertTrue(release.is_static(self.program(load, load)))
        # Static, and at another address each time.
        self.assertTrue(release.is_static(self.program(load, dynamic)))
        for program in (self.program(load, interpreter, dynamic), self.program(), self.program(load, magic=b"MZ\0\0\0\0")):
            self.assertFalse(release.is_static(program))

    def test_operator_program_is_built_for_musl_and_refused_if_dynamic(self):
        self.assertEqual(set(release.OPERATOR_TARGETS), set(release.ARCHITECTURES))
        for architecture, target in release.OPERATOR_TARGETS.items():
            self.assertTrue(target.endswith("-linux-musl"), target)
            dynamic = mock.Mock(return_value=self.program(1, 3))
            with mock.patch.multiple(release, build=mock.DEFAULT, package=mock.DEFAULT, built=dynamic) as calls:
                refused = release.package_operator(architecture, "/target", "/out")
                self.assertIn("must be static", refused)
                self.assertIn(("--target", target), itertools.pairwise(calls["build"].call_args.args[0]))
                self.assertFalse(calls["package"].called)


class Materials(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.graph = bill_of_materials.graph(ROOT, "incident-dispatch", "x86_64-unknown-linux-gnu")

    def test_bill_has_every_package_of_the_binary_with_its_sum(self):
        bill = bill_of_materials.bill(self.graph)
        self.assertEqual((bill["bomFormat"], bill["specVersion"]), ("CycloneDX", "1.5"))
        self.assertEqual(bill["metadata"]["component"]["name"], "incident-dispatch")
        components = {one["name"]: one for one in bill["components"]}
        self.assertTrue({"shared", "tokio", "aws-lc-sys", "rustls"} <= set(components))
        # What only tests or other platforms need is not in it.
        self.assertFalse({"proptest", "windows-sys", "it"} & set(components))
        for name, one in components.items():
            self.assertTrue(one["licenses"], name)
            self.assertEqual("hashes" in one, name not in ("shared",), name)
        references = [one["bom-ref"] for one in bill["components"]]
        self.assertEqual(len(set(references)), len(references))

    def test_notices_hold_the_texts_of_all_packages_that_have_one(self):
        text = bill_of_materials.notices(self.graph)
        for package in self.graph:
            if package["source"]:
                self.assertIn(f"{package['name']} {package['version']}: ", text)
        self.assertIn("OpenSSL", text)  # a notice that AWS-LC asks for
        without = {one["name"] for one in self.graph if one["source"] and not list(bill_of_materials.licence_texts(one))}
        self.assertLessEqual(len(without), 6, without)


class Template(TemplateCase):
    def test_packaged_template_needs_nothing_but_cloudformation(self):
        for architecture in release.ARCHITECTURES:
            packaged = release_template.packaged(architecture, zips_of(architecture))
            self.assertNotIn("Transform", packaged)
            deploy.check(packaged)
            functions = sam_template.by_type(packaged, "AWS::Lambda::Function")
            self.assertEqual(set(functions), set(ROUTES))
            for name, function in functions.items():
                properties = function["Properties"]
                binary = self.source["Resources"][name]["Metadata"]["BuildProperties"]["Binary"]
                key = {"Fn::Sub": "${ArtifactPrefix}" + zips_of(architecture)[binary]}
                self.assertEqual(properties["Code"], {"S3Bucket": {"Ref": "ArtifactBucket"}, "S3Key": key}, name)
                self.assertEqual(properties["Architectures"], [architecture], name)

    def test_another_zip_publishes_another_version(self):
        versions = [
            set(sam_template.by_type(release_template.packaged("arm64", zips_of("arm64", digest)), "AWS::Lambda::Version"))
            for digest in ("0" * 16, "1" * 16)
        ]
        self.assertFalse(versions[0] & versions[1])

    def test_packaged_template_is_the_tested_one_but_for_the_code(self):
        packaged = release_template.packaged("arm64", zips_of("arm64"))

        def comparable(resources):
            text = json.dumps(resources, sort_keys=True)
            return re.sub(r"Version[0-9a-f]{10}", "Version", text)

        for resources in (packaged["Resources"], expanded := json.loads(json.dumps(self.resources))):
            for name in ROUTES:
                resources[name]["Properties"].pop("Code")
        self.assertEqual(comparable(packaged["Resources"]), comparable(expanded))


class Terraform(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.module = {}
        for path in glob.glob(os.path.join(INFRA, "terraform", "*.tf")):
            with open(path, encoding="utf-8") as file:
                cls.module[os.path.basename(path)] = hcl2.load(io.StringIO(file.read()))
        cls.text = json.dumps(cls.module)

    def test_module_is_a_stack_of_the_packaged_template(self):
        self.assertEqual(set(self.module), {"main.tf", "outputs.tf", "variables.tf", "versions.tf"})
        resources = {kind.strip('"') for one in self.module["main.tf"]["resource"] for kind in one}
        self.assertEqual(resources, {"aws_cloudformation_stack", "aws_s3_object"})
        self.assertIn("CAPABILITY_IAM", self.text)

    def test_rollback_finds_the_zips_of_the_release_before(self):
        resources = {
            name.strip('"'): body
            for one in self.module["main.tf"]["resource"]
            for kind in one.values()
            for name, body in kind.items()
        }
        # Terraform destroys such an object only after it has updated what depends on it.
        self.assertEqual([one["create_before_destroy"] for one in resources["zip"]["lifecycle"]], [True])
        self.assertIn("aws_s3_object.zip", str(resources["mandate"]["depends_on"]))

    def test_template_is_read_from_the_region_of_its_bucket(self):
        # The host without a region is wrong outside the partition `aws`, and redirects in newer regions.
        self.assertNotIn("amazonaws.com", self.text)
        self.assertIn("bucket_regional_domain_name", self.text)

    def test_every_variable_is_declared_and_used(self):
        declared = {name.strip('"') for one in self.module["variables.tf"]["variable"] for name in one}
        used = set(re.findall(r"\bvar\.(\w+)", self.text))
        self.assertEqual(used, declared)

    def test_module_names_existing_files_and_parameters(self):
        self.assertIn("template-", self.text)
        for parameter in re.findall(r"(Artifact\w+)\s*=", open_text("terraform", "main.tf")):
            self.assertIn(parameter, release_template.PARAMETERS)


def open_text(*path):
    with open(os.path.join(INFRA, *path), encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    unittest.main()
