"""The one table of routes of a server: the protocols', the pages', and the document about them."""

from dataclasses import replace

from flambeau.protocols import openapi
from flambeau.protocols.dispatch import NATIVE
from flambeau.protocols.routes import RouteTable
from flambeau.settings.service import Settings
from flambeau.ui import openapi_page, pages


def site_routes(settings: Settings, *, tokens: bool) -> RouteTable:
    """The table. `tokens`: some requests need one."""
    document = openapi.route(lambda: table, tokens=tokens)
    routes = [*NATIVE, document, *pages.ROUTES, *openapi_page.ROUTES]
    if settings.metrics_public:
        routes = [replace(route, scope="public") if route.path == "/metrics" else route for route in routes]
    table = RouteTable(routes)
    return table
