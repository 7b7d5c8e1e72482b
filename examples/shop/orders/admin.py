from django.contrib import admin

from orders.models import Order, OrderLine


class LineInline(admin.TabularInline):
    model = OrderLine
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["key", "customer", "created"]
    search_fields = ["key", "customer"]
    inlines = [LineInline]
