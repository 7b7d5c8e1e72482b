from django.conf import settings
from django.contrib.auth.decorators import permission_required
from django.contrib.postgres.search import SearchQuery
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from catalogue.models import Product
from catalogue.uploads import RefusedUpload, accepted_name


@require_safe
def product_list(request: HttpRequest) -> HttpResponse:
    # PostgreSQL has no text with a zero byte in it, so nothing is found under one.
    words = request.GET.get("q", "").replace("\x00", "").strip()
    products = Product.objects.defer("search")
    if words:
        query = SearchQuery(words, config="english", search_type="websearch")
        products = products.filter(search=query)
    page = Paginator(products, 24).get_page(request.GET.get("page"))
    return render(request, "catalogue/list.html", {"page": page, "words": words})


@require_safe
def product_detail(request: HttpRequest, sku: str) -> HttpResponse:
    product = get_object_or_404(Product, sku=sku)
    return render(request, "catalogue/detail.html", {"product": product})


@require_POST
@permission_required("catalogue.change_product", raise_exception=True)
def upload_photo(request: HttpRequest, sku: str) -> HttpResponse:
    product = get_object_or_404(Product, sku=sku)
    photo = request.FILES.get("photo")
    if photo is None:
        return JsonResponse({"error": "Send a file in the field photo."}, status=400)
    head = photo.read(16)
    photo.seek(0)
    try:
        name = accepted_name(head, photo.size, settings.UPLOAD_MAX_BYTES)
    except RefusedUpload as refusal:
        return JsonResponse({"error": str(refusal)}, status=400)
    product.photo.save(name, photo, save=False)
    product.save(update_fields=["photo"])
    return redirect("product-detail", sku=sku)
