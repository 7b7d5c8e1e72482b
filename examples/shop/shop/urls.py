from django.contrib import admin
from django.urls import path

from catalogue import views as catalogue
from orders import views as orders
from shop import health

urlpatterns = [
    path("", catalogue.product_list, name="product-list"),
    path("products/<slug:sku>/", catalogue.product_detail, name="product-detail"),
    path("products/<slug:sku>/photo", catalogue.upload_photo, name="upload-photo"),
    path("order", orders.order_form, name="order-form"),
    path("api/orders", orders.create_order, name="create-order"),
    path("api/orders/<str:key>", orders.show_order, name="show-order"),
    path("reports/sales", orders.sales_report, name="sales-report"),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("admin/", admin.site.urls),
]
