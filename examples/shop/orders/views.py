import json
import uuid

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from orders import report
from orders.ledger import CannotSell, KeyTaken, place_order
from orders.models import Confirmation, Order
from orders.requests import BadOrder, checked_key, parse_order


def as_json(order: Order) -> dict[str, object]:
    lines = order.lines.select_related("product").order_by("product__sku")
    return {
        "key": order.key,
        "customer": order.customer,
        "created": order.created.isoformat(),
        "confirmed": confirmed(order),
        "items": [{"sku": line.product.sku, "quantity": line.quantity} for line in lines],
    }


def confirmed(order: Order) -> bool:
    return Confirmation.objects.filter(order=order, made__isnull=False).exists()


# No cookie gives this view any right, so there is nothing to forge.
@csrf_exempt
@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    try:
        key = checked_key(request.headers.get("Idempotency-Key"))
        wanted = parse_order(json.loads(request.body))
        order, written = place_order(key, wanted)
    except (BadOrder, ValueError) as error:
        return JsonResponse({"error": str(error)}, status=400)
    except KeyTaken as error:
        return JsonResponse({"error": str(error)}, status=409)
    except CannotSell as error:
        return JsonResponse({"error": str(error)}, status=422)
    return JsonResponse(as_json(order), status=201 if written else 200)


@never_cache
@require_safe
def show_order(request: HttpRequest, key: str) -> JsonResponse:
    try:
        order = Order.objects.filter(key=checked_key(key)).first()
    except BadOrder:
        order = None
    if order is None:
        return JsonResponse({"error": "There is no such order."}, status=404)
    return JsonResponse(as_json(order))


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def order_form(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        fresh = {"key": uuid.uuid4().hex, "sku": request.GET.get("sku", "")}
        return render(request, "orders/form.html", fresh)
    form = request.POST
    try:
        quantity = int(form.get("quantity", ""))
        item = {"sku": form.get("sku"), "quantity": quantity}
        wanted = parse_order({"customer": form.get("customer"), "items": [item]})
        order, written = place_order(checked_key(form.get("key")), wanted)
    except (ValueError, KeyTaken, CannotSell) as error:
        again = {"error": str(error), "key": form.get("key"), "sku": form.get("sku")}
        return render(request, "orders/form.html", again, status=400)
    return render(request, "orders/done.html", {"order": order}, status=201 if written else 200)


@require_safe
def sales_report(request: HttpRequest) -> JsonResponse:
    try:
        days = min(max(int(request.GET.get("days", "30")), 1), 3660)
    except ValueError:
        return JsonResponse({"error": "days: send a number."}, status=400)
    state, rows = report.newest(days)
    return JsonResponse({"state": state, "days": rows}, status=202 if rows is None else 200)
