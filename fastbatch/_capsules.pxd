"""What every source and order needs to hand out a C struct: a capsule that keeps the struct's owner alive."""

from cpython.pycapsule cimport PyCapsule_Destructor, PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t

from fastbatch._contract cimport FB_SOURCE_ABI, FB_SOURCE_CAPSULE, fb_field, fb_source


cdef inline object owning_capsule(void *pointer, const char *name, PyCapsule_Destructor destructor, object owner):
    """Returns a capsule with a reference to `owner`, which the destructor must give up with take_owner()."""
    capsule = PyCapsule_New(pointer, name, destructor)
    PyCapsule_SetContext(capsule, <void *>owner)
    Py_INCREF(owner)
    return capsule


cdef inline object take_owner(object capsule):
    """Returns the owner, for a destructor: the capsule's reference is gone, and the caller's may be the last one."""
    owner = <object>PyCapsule_GetContext(capsule)
    Py_DECREF(owner)
    return owner


cdef inline object source_capsule(fb_source *source, PyCapsule_Destructor destructor, object owner):
    return owning_capsule(source, FB_SOURCE_CAPSULE, destructor, owner)


cdef inline void begin_source(fb_source *source, void *self, const char *name, uint64_t count, const fb_field *fields,
                              size_t field_count) noexcept:
    """Fills in what every source has. Its functions, and whatever else is not 0, are the caller's to add."""
    source.abi = FB_SOURCE_ABI
    source.size = sizeof(fb_source)
    source.self = self
    source.name = name
    source.count = count
    source.fields = fields
    source.field_count = <uint32_t>field_count
