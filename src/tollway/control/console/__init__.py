"""The console: pages on which tenants and operators see and change what the REST API shows and changes, as HTML from the server.

Owns the pages below `/console`, their templates, style sheet and scripts. Does not own their languages (`languages/`), operations, rules of
access or queries: a page calls the functions behind the routes of the REST API with `Page.call`, which checks the permission that the
route declares and records the change as the route would. So a page shows nothing that the API would refuse, and no page has SQL of its
own.

How a page is added:

1. A module of `tenant/` (paths below `/console/organizations/{organization_id}`) or `platform/` (below `/console/platform`), with a
   `router` of `routing.router()` that `routers.py` lists. Its endpoints take a `TenantPage` or a `PlatformPage`, call operations by
   `page.call`, and return `page.show(template, ...)`. What not everybody may see is left out with `page.allows`.
2. A template in `templates/`, which extends `shell.html` and takes its texts from `_("...")`; `make messages` collects them in
   `control/languages/de.po`, where each needs its German. Numbers, money and times go through the filters of `languages/formats.py`.
3. A form names the operation that it is sent for and its fields by `form(operation, "name", ...)`: whoever may not call the operation is
   refused before a field is looked at. It is sent to a POST of the same module, which calls the operation and answers with
   `page.lead(path, notice)`, or shows the form again with the fault. Whatever cannot be undone asks for a typed confirmation
   (`forms.require_typed`), and says what will happen.
4. An entry in `navigation.py`, with the operation without which the page is not offered; a row in `tests/control/console/pages.py`, by
   which the walk over all pages opens it in a browser.

Charts are SVG that the server draws (`charts.py`), so pages work without scripts; scripts (`static/*.js`) only add to what is there.
"""
