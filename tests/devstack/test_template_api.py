"""The template's HTTP APIs: routes, authorization, limits, the domain.

    python -m unittest discover -s tests/devstack
"""

import json
import re
import unittest

import sam_template
from template_case import PUBLIC, ROUTES, SAMPLES, TemplateCase

TOKEN_ROUTE = ("POST", "/tenants/{tenant_id}/token")


class Api(TemplateCase):
    def routes(self, **given):
        """Returns the routes of all APIs that exist with these parameters."""
        expanded, values = self.expanded_with(**given)
        return list(sam_template.routes_of(expanded, sam_template.aliases_of(expanded), values))

    def stage_of(self, api):
        """Returns the logical id of an API's stage."""
        stages = self.properties_of("AWS::ApiGatewayV2::Stage")
        (name,) = (name for name, stage in stages.items() if stage["ApiId"] == {"Ref": api})
        return name

    def test_routes_are_those_of_the_interface(self):
        found = {name: set() for name in ROUTES}
        for route in self.routes():
            found[route.function].add((route.method, route.path))
        self.assertEqual(found, ROUTES)

    def test_only_the_consent_routes_are_public(self):
        routes = self.routes()
        self.assertEqual({(route.method, route.path) for route in routes if route.auth != "AWS_IAM"}, PUBLIC)
        self.assertEqual(self.source["Resources"]["Api"]["Properties"]["Auth"]["DefaultAuthorizer"], "AWS_IAM")
        api = self.resources["Api"]["Properties"]
        schemes = api["Body"]["components"]["securitySchemes"]
        self.assertEqual(schemes["AWS_IAM"]["x-amazon-apigateway-authtype"], "awsSigv4")
        for path, methods in api["Body"]["paths"].items():
            for method, route in methods.get("Fn::If", [None, methods])[1].items():
                self.assertEqual(route["x-amazon-apigateway-integration"]["payloadFormatVersion"], "2.0", path + method)

    def test_public_routes_have_lower_throttling_limits(self):
        stage = self.resources[self.stage_of("Api")]["Properties"]
        known = {f"{method} {path}" for routes in ROUTES.values() for method, path in routes}
        self.assertLessEqual(set(stage["RouteSettings"]), known)
        usual = stage["DefaultRouteSettings"]
        self.assertGreater(usual["ThrottlingRateLimit"], 0)
        for method, path in PUBLIC:
            setting = stage["RouteSettings"][f"{method} {path}"]
            self.assertLess(setting["ThrottlingRateLimit"], usual["ThrottlingRateLimit"])
            self.assertLess(setting["ThrottlingBurstLimit"], usual["ThrottlingBurstLimit"])

    def test_access_log_contains_neither_path_nor_query(self):
        for stage in self.properties_of("AWS::ApiGatewayV2::Stage").values():
            self.assertEqual(stage["StageName"], "$default")
            line = stage["AccessLogSettings"]["Format"]
            self.assertNotIn("\n", line)
            fields = json.loads(line)
            # `messageString` has quotes of its own, which would break the JSON.
            self.assertNotIn("messageString", line)
            for value in fields.values():
                self.assertNotRegex(value, r"\$context\.(path|customDomain|http)|querystring|\$request[.]")

    def test_each_invoke_permission_is_for_one_route(self):
        scopes, aliases = [], sam_template.aliases_of(self.expanded)
        permissions = self.properties_of("AWS::Lambda::Permission")
        del permissions["SecretRotationPermission"]
        permissions = {name: one for name, one in permissions.items() if not name.startswith("Jwt")}
        for name, permission in permissions.items():
            self.assertEqual(permission["Principal"], "apigateway.amazonaws.com", name)
            self.assertEqual(permission["Action"], "lambda:InvokeFunction", name)
            text, given = permission["SourceArn"]["Fn::Sub"]
            self.assertEqual(given, {"__ApiId__": {"Ref": "Api"}, "__Stage__": "*"}, name)
            method, path = text.split("${__Stage__}/")[1].split("/", 1)
            self.assertRegex(method, "^[A-Z]+$", name)
            scopes.append((aliases[permission["FunctionName"]["Ref"]], method, "/" + path))
        wanted = [
            (function, method, re.sub(r"\{\w+\}", "*", path))
            for function, routes in ROUTES.items()
            for method, path in routes
        ]
        self.assertEqual(sorted(scopes), sorted(wanted))

    def test_token_route_can_be_switched_off(self):
        routes = self.routes(EnableTokenRoute="false")
        self.assertNotIn(TOKEN_ROUTE, {(route.method, route.path) for route in routes})
        wanted = sum(map(len, ROUTES.values())) - 1
        self.assertEqual(len(routes), wanted)
        for name in ("IssueTokenPermission", "TokenCallerPolicy"):
            self.assertEqual(self.resources[name]["Condition"], "HasTokenRoute", name)
        self.assertEqual(self.resources["JwtTokenIssuancePermission"]["Condition"], "HasJwtTokenRoute")

    def test_jwt_api_has_every_json_route_and_no_other(self):
        self.assertEqual([route for route in self.routes() if route.auth == "jwt"], [])
        jwt = {"JwtIssuer": SAMPLES["JwtIssuer"], "JwtAudience": SAMPLES["JwtAudience"]}
        for given, wanted in (
            ({}, {route for routes in ROUTES.values() for route in routes} - PUBLIC),
            ({"EnableTokenRoute": "false"}, {route for routes in ROUTES.values() for route in routes} - PUBLIC - {TOKEN_ROUTE}),
        ):
            found = [route for route in self.routes(**jwt, **given) if route.auth == "jwt"]
            self.assertEqual({(route.method, route.path) for route in found}, wanted)
            for route in found:
                self.assertIn((route.method, route.path), ROUTES[route.function])

    def test_jwt_api_checks_issuer_and_audience_of_every_call(self):
        body = self.resources["JwtApi"]["Properties"]["Body"]
        authorizer = body["components"]["securitySchemes"]["jwt"]["x-amazon-apigateway-authorizer"]
        self.assertEqual(authorizer["type"], "jwt")
        wanted = {"issuer": {"Ref": "JwtIssuer"}, "audience": [{"Ref": "JwtAudience"}]}
        self.assertEqual(authorizer["jwtConfiguration"], wanted)
        for integration in body["components"]["x-amazon-apigateway-integrations"].values():
            self.assertEqual(integration["payloadFormatVersion"], "2.0")
        for name in ("JwtIssuerNeedsTheAudience", "JwtAudienceNeedsTheIssuer"):
            self.assertIn(name, self.source["Rules"])
        parts = {name for name in self.resources if name.startswith("Jwt")}
        self.assertEqual({self.resources[name]["Condition"] for name in parts}, {"HasJwtApi", "HasJwtTokenRoute"})
        # The same limits as the other API, where one call reads all tenants.
        own, other = (self.resources[self.stage_of(api)]["Properties"] for api in ("JwtApi", "Api"))
        self.assertEqual(own["DefaultRouteSettings"], other["DefaultRouteSettings"])
        public = {f"{method} {path}" for method, path in PUBLIC}
        wanted = {route: limits for route, limits in other["RouteSettings"].items() if route not in public}
        self.assertEqual(own["RouteSettings"], wanted)

    def test_domain_has_certificate_mapping_and_dns_records(self):
        parts = {name: self.resources[name]["Condition"] for name in ("Domain", "DomainMapping", "DomainRecord")}
        wanted = {"Domain": "HasDomain", "DomainMapping": "HasDomain", "DomainRecord": "HasDnsRecords"}
        self.assertEqual(parts, wanted)
        (configuration,) = self.resources["Domain"]["Properties"]["DomainNameConfigurations"]
        self.assertEqual(configuration["SecurityPolicy"], "TLS_1_2")
        mapping = self.resources["DomainMapping"]["Properties"]
        # A path would be a part of the request's path, which the functions compare with the route.
        self.assertNotIn("ApiMappingKey", mapping)
        self.assertEqual(mapping["Stage"], {"Ref": self.stage_of("Api")})

    def test_pages_are_at_the_given_url_or_at_the_domain(self):
        variable = self.resources["ConsentCallback"]["Properties"]["Environment"]["Variables"]["PUBLIC_BASE_URL"]
        for given, wanted in (
            ({}, ""),
            ({"DomainName": "mandate.example.com"}, "https://mandate.example.com"),
            ({"DomainName": "mandate.example.com", "PublicBaseUrl": "https://a.example"}, "https://a.example"),
        ):
            values = {**self.values, **given}
            self.assertEqual(sam_template.evaluated(variable, self.expanded, values), wanted, given)


if __name__ == "__main__":
    unittest.main()
